"""Reads a Parquet file in a process of its own, which may die of it.

``python -m mlops_project.serving.parquet ROWS BYTES`` takes a file from standard input and writes it as an Arrow stream. pyarrow
ends the process over some damaged files, and a page of kilobytes can ask for gigabytes: here neither harms a worker.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import Any

DAMAGED, TOO_MANY, TOO_LARGE = 2, 3, 4
# What reading may need beside the table.
WORKING_BYTES = 512 * 1024 * 1024
SECONDS = 20


def as_stream(body: bytes, max_rows: int, limit: int) -> tuple[int, bytes]:
    """Return 0 and a table as an Arrow stream, or what is wrong (`DAMAGED` and its companions) and a text about it."""
    command = [sys.executable, "-m", "mlops_project.serving.parquet", str(max_rows), str(limit)]
    try:
        done = subprocess.run(command, input=body, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return TOO_LARGE, b"reading takes too long"
    if done.returncode not in (0, DAMAGED, TOO_MANY, TOO_LARGE):
        return DAMAGED, b"the file is damaged"
    return done.returncode, done.stdout


def main() -> int:
    """Read, check, write."""
    import pyarrow as pa
    from pyarrow import parquet

    max_rows, limit = map(int, sys.argv[1:])
    body = sys.stdin.buffer.read()
    most = WORKING_BYTES + 2 * limit
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    try:
        pa.set_memory_pool(pa.system_memory_pool())
        source: Any = pa.BufferReader(body)
        # As dictionaries: a long text that stands in all rows is held once.
        text = (pa.types.is_string, pa.types.is_large_string)
        texts = [field.name for field in parquet.read_schema(source) if any(is_text(field.type) for is_text in text)]
        file = parquet.ParquetFile(pa.BufferReader(body), read_dictionary=texts)
        if file.metadata.num_rows > max_rows:
            print(file.metadata.num_rows)
            return TOO_MANY
        table = file.read(use_threads=False)
        table.validate(full=True)
        if table.nbytes > limit:
            return TOO_LARGE
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
            writer.write_table(table.replace_schema_metadata())
    except MemoryError:
        return TOO_LARGE
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        print(" ".join(str(error).split())[:200])
        return DAMAGED
    sys.stdout.buffer.write(sink.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main())
