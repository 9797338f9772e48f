// Requests to the server. Every address is relative, so that the page works behind a path prefix.

import { RequestError } from "./request_error.js";

async function request(path) {
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI));
  } catch {
    throw new RequestError("The panel's server does not answer. Is it still running, and the tunnel open?");
  }
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    const reason = typeof answer.detail === "string" ? answer.detail : `answer ${response.status}`;
    throw new RequestError(reason);
  }
  return response;
}

/** Plain values. */
export const requestJson = async (path) => (await request(path)).json();

/** The bytes of an answer. */
export const requestBuffer = async (path) => (await request(path)).arrayBuffer();
