//! The byte-level alphabet of GPT-2: how a vocabulary writes bytes as printable characters.
//!
//! Printable bytes of Latin-1 stand for themselves; the other 68, in ascending order, are written
//! as U+0100, U+0101, and so on. A space is `Ġ`, a line feed `Ċ`.

/// Whether the alphabet writes this byte as the character of the same number.
const fn is_itself(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// The character that stands for each byte.
const WRITTEN: [char; 256] = {
    let mut table = ['\0'; 256];
    let mut shifted = 0x100;
    let mut byte = 0;
    while byte < 256 {
        let own = byte as u8;
        table[byte] = if is_itself(own) {
            own as char
        } else {
            let written = match char::from_u32(shifted) {
                Some(written) => written,
                None => '\0',
            };
            shifted += 1;
            written
        };
        byte += 1;
    }
    table
};

/// The byte that each character below U+0144 stands for.
const READ: [Option<u8>; 0x144] = {
    let mut table = [None; 0x144];
    let mut byte = 0;
    while byte < 256 {
        table[WRITTEN[byte] as usize] = Some(byte as u8);
        byte += 1;
    }
    table
};

/// The character that stands for `byte`.
pub(super) fn encode(byte: u8) -> char {
    WRITTEN[usize::from(byte)]
}

/// Appends the bytes that `token` stands for; appends nothing and returns false if a character of
/// it is not in the alphabet.
pub(super) fn decode_into(token: &str, bytes: &mut Vec<u8>) -> bool {
    let start = bytes.len();
    for character in token.chars() {
        match READ.get(character as usize) {
            Some(Some(byte)) => bytes.push(*byte),
            _ => {
                bytes.truncate(start);
                return false;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_the_alphabet() {
        for byte in 0..=255u8 {
            let mut bytes = Vec::new();
            assert!(decode_into(&encode(byte).to_string(), &mut bytes));
            assert_eq!(bytes, [byte]);
        }
        assert_eq!((encode(b' '), encode(b'\n'), encode(0xad)), ('Ġ', 'Ċ', 'Ń'));
    }

    #[test]
    fn a_foreign_character_leaves_nothing_behind() {
        let mut bytes = b"kept".to_vec();
        assert!(!decode_into("ab｜", &mut bytes));
        assert!(!decode_into("ab ", &mut bytes));
        assert_eq!(bytes, b"kept");
    }
}
