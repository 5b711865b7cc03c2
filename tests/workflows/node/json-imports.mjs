// @actions/workflow-parser imports its JSON schemas without saying that they are JSON, which Node requires.
import { registerHooks } from "node:module";

registerHooks({
  load(url, context, next) {
    const typed = url.endsWith(".json") ? { ...context, importAttributes: { type: "json" } } : context;
    return next(url, typed);
  },
});
