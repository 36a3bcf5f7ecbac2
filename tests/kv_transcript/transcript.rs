//! Requests from the few words that describe them.

/// Something that happens to a server.
pub enum Event {
    /// It is asked.
    Request(Request),
    /// It is stopped and started.
    Restart,
}

/// A prompt and its answer.
pub struct Request {
    /// All ids of the prompt, those that mark messages included.
    pub prompt: Vec<u32>,
    pub answer: Vec<u32>,
    /// Where the first user message begins: what is before is the system prompt and tools.
    pub system_end: usize,
    /// Where the last user message begins.
    pub last_message: usize,
}

impl Request {
    /// What the model has run once it has answered.
    pub fn all(&self) -> Vec<u32> {
        [&self.prompt[..], &self.answer].concat()
    }
}

/// Marks a message of the user, or the beginning of an answer.
const USER: u32 = 1;
const ASSISTANT: u32 = 2;

/// A message of the user and its answer, without marks.
#[derive(Clone)]
struct Turn {
    request: usize,
    message: Vec<u32>,
    answer: Vec<u32>,
}

/// Reads the description.
pub fn read(text: &str) -> Vec<Event> {
    let mut events = Vec::new();
    let mut fresh = 0;
    let mut new = |tokens: usize| {
        fresh += 1;
        message(fresh, tokens)
    };
    // System prompts of helpers are the same each time.
    let helper = |tokens: usize| message(1_000_000 + tokens as u64, tokens);
    let mut system = Vec::new();
    let mut history: Vec<Turn> = Vec::new();
    let mut known: Vec<Vec<Turn>> = vec![Vec::new()];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |i: usize| words[i].parse::<usize>().unwrap();
        match words[0] {
            "system" => system = new(number(1)),
            "restart" => events.push(Event::Restart),
            "fork" => history.clone_from(&known[number(1)]),
            "edit" => {
                let message = new(number(2));
                let turn = history.iter_mut().find(|turn| turn.request == number(1)).unwrap();
                turn.message = message;
            }
            "ask" => {
                let turn =
                    Turn { request: known.len(), message: new(number(1)), answer: new(number(3)) };
                let reminder = if words.len() > 4 { new(number(5)) } else { Vec::new() };
                events.push(Event::Request(request(&system, &history, &turn, &reminder)));
                history.push(turn);
                known.push(history.clone());
            }
            "side" => {
                let turn =
                    Turn { request: known.len(), message: new(number(2)), answer: new(number(4)) };
                events.push(Event::Request(request(&helper(number(1)), &[], &turn, &[])));
                known.push(history.clone());
            }
            other => panic!("{other}"),
        }
    }
    events
}

fn request(system: &[u32], history: &[Turn], last: &Turn, reminder: &[u32]) -> Request {
    let mut prompt = system.to_vec();
    let system_end = prompt.len();
    for turn in history {
        prompt.push(USER);
        prompt.extend(&turn.message);
        prompt.push(ASSISTANT);
        prompt.extend(&turn.answer);
    }
    let last_message = prompt.len();
    prompt.push(USER);
    prompt.extend(&last.message);
    prompt.extend(reminder);
    prompt.push(ASSISTANT);
    Request { prompt, answer: last.answer.clone(), system_end, last_message }
}

/// Tokens that no other message has.
fn message(seed: u64, tokens: usize) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        3 + (state >> 40) as u32 % 129_000
    };
    (0..tokens).map(next).collect()
}
