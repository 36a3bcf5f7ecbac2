//! The ids a model writes, to events.

use super::{Event, Parser, Piece, Thinking};
use crate::tokenizer::{Control, Decoder, Tokenizer};

/// Turns the ids of one reply into [`Event`]s: whole characters, control tokens apart from text.
#[derive(Debug, Clone)]
pub struct Reader {
    control: Control,
    decoder: Decoder,
    parser: Parser,
}

impl Reader {
    /// A reader for the reply to a prompt rendered with this effort.
    pub fn new(tokenizer: &Tokenizer, thinking: Thinking) -> Self {
        Self {
            control: *tokenizer.control(),
            decoder: Decoder::new(),
            parser: Parser::new(thinking.is_on()),
        }
    }

    /// The parser, for what the sampler asks of it.
    pub fn parser(&self) -> &Parser {
        &self.parser
    }

    /// Takes one id and returns the events it completes. EOS has none: the caller stops on it.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Vec<Event> {
        let mut events = Vec::new();
        if !tokenizer.is_control(id) {
            let text = self.decoder.push(tokenizer, id);
            self.parser.push(Piece::Text(&text), &mut events);
            return events;
        }
        let dangling = self.decoder.finish();
        self.parser.push(Piece::Text(&dangling), &mut events);
        let control = self.control;
        if id == control.think {
            self.parser.push(Piece::Think, &mut events);
        } else if id == control.end_think {
            self.parser.push(Piece::EndThink, &mut events);
        } else if id == control.dsml {
            self.parser.push(Piece::Marker, &mut events);
        } else if id != control.eos {
            let spelling = self.decoder.push(tokenizer, id);
            self.parser.push(Piece::Text(&spelling), &mut events);
        }
        events
    }

    /// Ends the reply and returns what was held back.
    pub fn finish(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let dangling = self.decoder.finish();
        self.parser.push(Piece::Text(&dangling), &mut events);
        self.parser.finish(&mut events);
        events
    }
}
