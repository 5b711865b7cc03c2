// GitHub's parser and evaluator, for the interpreter: one JSON request per line in, one answer per line out.
//
//   {"parse": "workflow" | "action", "path", "text"}  ->  {"value": tree} with expressions as {"$expression": "..."}
//   {"evaluate": "...", "contexts": {...}, "status": "success" | "failure"}  ->  {"value"}
//
// What cannot be parsed or evaluated is answered with {"error": "..."}.
import { createInterface } from "node:readline";
import { Evaluator, Lexer, Parser, data } from "@actions/expressions";
import { replacer } from "@actions/expressions/data/replacer";
import { reviver } from "@actions/expressions/data/reviver";
import { NoOperationTraceWriter, convertWorkflowTemplate, parseWorkflow } from "@actions/workflow-parser";
import { parseAction } from "@actions/workflow-parser/actions/action-parser";
import { convertToIfCondition } from "@actions/workflow-parser/model/converter/if-condition";
import { TokenType } from "@actions/workflow-parser/templates/tokens/types";

async function parse({ parse: kind, path, text }) {
  const read = kind === "workflow" ? parseWorkflow : parseAction;
  const { context, value } = read({ name: path, content: text }, new NoOperationTraceWriter());
  const tree = value && plain(context, value);
  if (kind === "workflow" && value) await convertWorkflowTemplate(context, value);
  const errors = context.errors.getErrors();
  if (errors.length) throw new Error(errors.map(error => error.message).join("\n"));
  return tree;
}

function plain(context, token) {
  switch (token.templateTokenType) {
    case TokenType.Mapping:
      return Object.fromEntries([...token].map(({ key, value }) => [key.assertString("key").value, entry(context, key, value)]));
    case TokenType.Sequence:
      return [...token].map(item => plain(context, item));
    case TokenType.BasicExpression:
      return { $expression: token.expression };
    case TokenType.String:
    case TokenType.Number:
    case TokenType.Boolean:
      return token.value;
    case TokenType.Null:
      return null;
    default:
      throw new Error(`a token of type ${token.templateTokenType} is not supported`);
  }
}

// `if:` is an expression with or without ${{ }}, and holds success() unless it asks for another status.
function entry(context, key, value) {
  const isCondition = key.value === "if" && value.isScalar;
  const condition = isCondition ? convertToIfCondition(context, value) : undefined;
  return plain(context, condition ?? value);
}

function evaluate({ evaluate: text, contexts, status }) {
  const functions = statusFunctions(status);
  const { tokens } = new Lexer(text).lex();
  const tree = new Parser(tokens, Object.keys(contexts), functions).parse();
  const known = JSON.parse(JSON.stringify(contexts), reviver);
  const result = new Evaluator(tree, known, new Map(functions.map(each => [each.name, each]))).evaluate();
  return JSON.parse(JSON.stringify(result, replacer));
}

function statusFunctions(status) {
  const answer = (name, value) => ({ name, minArgs: 0, maxArgs: 0, call: () => new data.BooleanData(value) });
  const statuses = ["success", "failure", "cancelled"].map(name => answer(name, name === status));
  return [answer("always", true), ...statuses];
}

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  let answer;
  try {
    answer = { value: "parse" in request ? await parse(request) : evaluate(request) };
  } catch (error) {
    answer = { error: `${error.message}` };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
