/** A request that failed, with a message for the reader of the page. */
export class RequestError extends Error {}
