-- For wrk: POST the lines of a file in turn, and end with one line of JSON.
local requests, at = {}, 0

function init(args)
  for line in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("POST", nil, nil, line)
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.timeout + errors.status
  io.write(string.format('{"requests": %d, "seconds": %f, "failed": %d, "p50": %f}\n',
    summary.requests, summary.duration / 1e6, failed, latency:percentile(50) / 1e6))
end
