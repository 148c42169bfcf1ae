// A bundle in JavaScript: run its graphs and compare with the numbers that were verified when it was exported.
//
//     vae unpack model.vae -o unpacked      (in Python, once)
//     npm install && node golden.mjs unpacked
//
// In a browser the same session opens from fetch("unpacked/score.onnx"); the graphs take raw columns.
import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";

ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";

const ARRAYS = { float32: Float32Array, float64: Float64Array, uint8: Uint8Array };

/** The tensor that golden.json describes; "NaN" and "Infinity" stand there as texts. */
function tensor({ type, dims, data }) {
  return new ort.Tensor(type, type === "string" ? data : ARRAYS[type].from(data, Number), dims);
}

/** The share of calibration rows at least as strange: the conformal p-value of a score. */
export function pValue(score, { scores }) {
  const atLeast = Number.isNaN(score) ? 0 : scores.filter((held) => held >= score).length;
  return (1 + atLeast) / (1 + scores.length);
}

/** Why an output differs from its golden numbers by more than rounding; null where it does not. */
function difference(found, wanted, { relative_tolerance, max_edge_share }) {
  if (found.dims.join() !== wanted.dims.join()) return `dims ${found.dims}, not ${wanted.dims}`;
  const width = wanted.dims.slice(1).reduce((product, size) => product * size, 1);
  const numbers = wanted.type === "string" ? [] : wanted.data.map(Number);
  const scales = Array(width).fill(1); // the tolerance follows the largest value of a column
  numbers.forEach((value, at) => {
    if (Number.isFinite(value)) scales[at % width] = Math.max(scales[at % width], Math.abs(value));
  });
  let onEdge = 0;
  for (let at = 0; at < wanted.data.length; at++) {
    if (wanted.type === "string") {
      onEdge += found.data[at] !== wanted.data[at];
      continue;
    }
    const [here, there] = [found.data[at], numbers[at]];
    if (Object.is(here, there) || here === there) continue;
    const size = Number.isFinite(there) ? Math.abs(there) : 0;
    if (Math.abs(here - there) <= wanted.tolerance * scales[at % width] + relative_tolerance * size) continue;
    // Between two whole numbers, or between a value and null, rounding may fall to either side.
    const bothWhole = Number.isInteger(here) && Number.isInteger(there) && Math.abs(here - there) <= 1;
    const oneNull = Number.isNaN(here) !== Number.isNaN(there);
    if (wanted.continuous || !(bothWhole || oneNull)) return `${here} in place of ${there} at ${at}`;
    onEdge++;
  }
  const allowed = Math.max(1, max_edge_share * wanted.data.length);
  return onEdge <= allowed ? null : `${onEdge} of ${wanted.data.length} values differ`;
}

const folder = process.argv[2] ?? "unpacked";
const golden = JSON.parse(await readFile(`${folder}/golden.json`, "utf8"));
const manifest = JSON.parse(await readFile(`${folder}/manifest.json`, "utf8"));
let failed = 0;
for (const [graph, rows] of Object.entries(golden.graphs)) {
  const session = await ort.InferenceSession.create(await readFile(`${folder}/${graph}.onnx`));
  const inputs = Object.fromEntries(Object.entries(rows.in).map(([name, value]) => [name, tensor(value)]));
  const outputs = await session.run(inputs);
  for (const [name, wanted] of Object.entries(rows.out)) {
    const problem = difference(outputs[name], wanted, golden);
    failed += problem !== null;
    console.log(`${graph}/${name}: ${problem ?? "the golden numbers"}`);
  }
  if (graph === "score") {
    const scores = outputs.strangeness ?? outputs.score;
    console.log(`p-value of the first row: ${pValue(scores.data[0], manifest.calibration)}`);
  }
}
process.exitCode = failed ? 1 : 0;
