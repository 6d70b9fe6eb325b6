//! `keiko:progress/output`.

use bytes::Bytes;
use keiko_core::outcome::Taint;
use keiko_core::output::TooMuch;
use keiko_core::policy::Capability;

use crate::bindings::keiko::progress::output::{Error, Host};
use crate::gate::{Call, Verdict};
use crate::state::State;

/// Answers nothing of the outside, so it marks nothing.
const EMIT: Call =
    Call { name: "keiko:progress/output.emit", capability: Some(Capability::Progress), taint: Taint::NONE };

impl Host for State {
    fn emit(&mut self, piece: Vec<u8>) -> wasmtime::Result<Result<(), Error>> {
        if self.gate.pass(&EMIT, piece.len())? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        if let Err(refused) = self.given.take(piece.len()) {
            return Ok(Err(refused.into()));
        }
        self.port.emit(Bytes::from(piece));
        Ok(Ok(()))
    }
}

impl From<TooMuch> for Error {
    fn from(refused: TooMuch) -> Error {
        match refused {
            TooMuch::Piece(limit) => Error::PieceTooLarge(limit),
            TooMuch::Pieces(limit) => Error::TooManyPieces(limit),
            TooMuch::Bytes(limit) => Error::TooManyBytes(limit),
        }
    }
}
