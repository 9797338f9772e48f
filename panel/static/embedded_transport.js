// Takes the place of transport.js in an exported page. A page opened from a file may fetch nothing,
// but it may run scripts: each answer of the server lies beside the page as one, compressed.

import { RequestError } from "./request_error.js";

const { files, refusals } = window.dreamscopeSupplement;
const ABSENT = "This exported page does not hold what was asked for; the panel that it was made with does.";

/** Plain values. */
export async function requestJson(path) {
  return JSON.parse(new TextDecoder().decode(await requestBuffer(path)));
}

/** The bytes of an answer. */
export async function requestBuffer(path) {
  const address = decodeURIComponent(path.replaceAll("+", " "));
  if (address in refusals) throw new RequestError(refusals[address]);
  if (!(address in files)) throw new RequestError(ABSENT);
  const packed = Uint8Array.from(atob(await run(files[address])), (byte) => byte.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(unpacked).arrayBuffer();
}

/** What the script of an answer hands over. */
async function run(file) {
  const script = document.createElement("script");
  script.src = file;
  await new Promise((resolve, reject) => {
    script.addEventListener("load", resolve);
    script.addEventListener("error", () =>
      reject(new RequestError(`The file ${file} is missing beside this page.`)));
    document.head.append(script);
  });
  script.remove();
  const content = window.dreamscopeSupplement.content[file];
  delete window.dreamscopeSupplement.content[file];
  return content;
}
