// @actions/workflow-parser imports its JSON schemas without saying that they are JSON, which Node wants to be told.
import { registerHooks } from "node:module";

registerHooks({
  load(url, context, next) {
    const told = url.endsWith(".json") ? { ...context, importAttributes: { type: "json" } } : context;
    return next(url, told);
  },
});
