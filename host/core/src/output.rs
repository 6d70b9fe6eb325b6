//! What a running attempt gives out before it ends: how much of it there may be. Nothing of it is stored.

use crate::limit::{OUTPUT_BYTES_MAX, OUTPUT_PIECE_BYTES_MAX, OUTPUT_PIECES_MAX};

/// What an attempt has given out so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given {
    pieces: u64,
    bytes: u64,
}

/// Why a piece was not taken, with the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooMuch {
    /// Bytes of one piece.
    Piece(u64),
    /// Pieces of an attempt.
    Pieces(u64),
    /// Bytes of all pieces of an attempt.
    Bytes(u64),
}

impl Given {
    /// Counts a piece of so many bytes, if there is room for it. What is refused counts nothing.
    pub fn take(&mut self, bytes: usize) -> Result<(), TooMuch> {
        if bytes > OUTPUT_PIECE_BYTES_MAX {
            return Err(TooMuch::Piece(OUTPUT_PIECE_BYTES_MAX as u64));
        }
        if self.pieces >= OUTPUT_PIECES_MAX {
            return Err(TooMuch::Pieces(OUTPUT_PIECES_MAX));
        }
        let all = self.bytes + bytes as u64;
        if all > OUTPUT_BYTES_MAX {
            return Err(TooMuch::Bytes(OUTPUT_BYTES_MAX));
        }
        *self = Given { pieces: self.pieces + 1, bytes: all };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_met_one_above_it_and_what_is_refused_counts_nothing() {
        let check = |before: Given, bytes: usize, expected: Result<(), TooMuch>| {
            let mut given = before;
            assert_eq!(given.take(bytes), expected, "{before:?} {bytes}");
            let is_counted = given.pieces == before.pieces + 1 && given.bytes == before.bytes + bytes as u64;
            assert!(if expected.is_ok() { is_counted } else { given == before }, "{given:?}");
        };
        let none = Given::default();
        check(none, 0, Ok(()));
        check(none, OUTPUT_PIECE_BYTES_MAX, Ok(()));
        check(none, OUTPUT_PIECE_BYTES_MAX + 1, Err(TooMuch::Piece(OUTPUT_PIECE_BYTES_MAX as u64)));
        check(Given { pieces: OUTPUT_PIECES_MAX - 1, bytes: 0 }, 1, Ok(()));
        check(Given { pieces: OUTPUT_PIECES_MAX, bytes: 0 }, 1, Err(TooMuch::Pieces(OUTPUT_PIECES_MAX)));
        check(Given { pieces: 1, bytes: OUTPUT_BYTES_MAX - 2 }, 2, Ok(()));
        check(Given { pieces: 1, bytes: OUTPUT_BYTES_MAX - 2 }, 3, Err(TooMuch::Bytes(OUTPUT_BYTES_MAX)));
    }
}
