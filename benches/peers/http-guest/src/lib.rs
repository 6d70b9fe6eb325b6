//! Answers every request with four bytes, as the bare handler of the comparison does.

use wasi::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

struct Noop;

impl wasi::exports::http::incoming_handler::Guest for Noop {
    fn handle(_request: IncomingRequest, outparam: ResponseOutparam) {
        let headers = Fields::new();
        let _ = headers.append("content-type", b"application/json");
        let response = OutgoingResponse::new(headers);
        let body = response.body().expect("a response has one body");
        ResponseOutparam::set(outparam, Ok(response));
        let stream = body.write().expect("a body is written once");
        stream.blocking_write_and_flush(b"null").expect("four bytes fit");
        drop(stream);
        OutgoingBody::finish(body, None).expect("nothing is left to write");
    }
}

wasi::http::proxy::export!(Noop);
