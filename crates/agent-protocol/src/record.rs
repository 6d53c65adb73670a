//! The log of a command: records one after the other, which the agent writes and whoever
//! has the file reads.
//!
//! A record is one byte that says what it is, four bytes of length (little-endian), and as
//! many bytes of data.

/// Bytes before the data of a record.
pub const HEADER: usize = 5;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Its data is standard output.
    Stdout,
    /// Its data is standard error.
    Stderr,
    /// Output was lost here: eight bytes with how much, little-endian.
    Lost,
}

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
            Self::Lost => 3,
        }
    }
}

/// The first bytes of a record of `length` bytes of data.
#[must_use]
pub fn header(kind: Kind, length: u32) -> [u8; HEADER] {
    let [a, b, c, d] = length.to_le_bytes();
    [kind.byte(), a, b, c, d]
}

/// What the first bytes of a record say; `None` where they are none.
#[must_use]
pub fn read_header(bytes: [u8; HEADER]) -> Option<(Kind, u32)> {
    let [kind, a, b, c, d] = bytes;
    let kind = match kind {
        1 => Kind::Stdout,
        2 => Kind::Stderr,
        3 => Kind::Lost,
        _ => return None,
    };
    Some((kind, u32::from_le_bytes([a, b, c, d])))
}
