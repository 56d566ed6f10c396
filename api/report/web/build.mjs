// Bundles src/ into bundle.js and bundle.css in the folder named on the command line (default: the one above this).
// The same sources and the same esbuild give the same bytes.
import { build } from "esbuild";
import { dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const target = resolve(process.argv[2] ?? resolve(here, ".."));
const settings = { bundle: true, minify: true, charset: "utf8", legalComments: "none", logLevel: "warning", absWorkingDir: here };

await build({ ...settings, entryPoints: ["src/main.js"], outfile: resolve(target, "bundle.js"), format: "iife", target: "es2022" });
await build({ ...settings, entryPoints: ["src/style.css"], outfile: resolve(target, "bundle.css"), target: ["chrome111", "firefox113", "safari16.4"] });
