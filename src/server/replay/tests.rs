use super::*;
use crate::prompt::{Thinking, Tool, ToolCall};
use crate::server::played::{self, reading, replies, spelled, tokenizer};
use crate::server::Event;
use proptest::prelude::*;
use serde_json::json;

const OWNER: Namespace = Namespace([1; 16]);
const STRANGER: Namespace = Namespace([2; 16]);

fn replay() -> Arc<Replay> {
    Arc::new(Replay::new(tokenizer(), Secret::random(), 1 << 20))
}

/// Plays the model: the ids, then the end. Returns what a client has seen.
fn answered(
    replay: &Arc<Replay>,
    before: Fingerprint,
    reading: Reading,
    ids: &[u32],
    finish: engine::Finish,
) -> Whole {
    let keep = replay.keeper(OWNER, before, reading.clone());
    let (events, _) = played::events(reading, Some(keep), ids, finish).unwrap();
    let ends = events.iter().filter(|event| matches!(event, Event::ReasoningEnd { .. })).count();
    let whole = played::whole(&events);
    assert_eq!(ends, usize::from(!whole.reasoning.is_empty()));
    whole
}

/// What a client of the chat dialect sends back of an answer.
fn sent_back(whole: &Whole) -> Message {
    Message {
        reasoning: Some(whole.reasoning.clone()).filter(|reasoning| !reasoning.is_empty()),
        tool_calls: whole.calls.clone(),
        ..Message::assistant(whole.text.clone())
    }
}

fn asked(messages: Vec<Message>) -> Conversation {
    let tools = vec![Tool::new("add", "Adds.", json!({"type": "object"}))];
    Conversation { messages, tools, thinking: Thinking::On, ..Conversation::default() }
}

fn ids(replay: &Replay, namespace: Namespace, conversation: &Conversation) -> Vec<u32> {
    replay.render(namespace, conversation).prompt.ids(&tokenizer()).unwrap()
}

const CALL: &str = "I must] \n\n<¤tool_calls>\n<¤invoke name=\"add\">\n\
    <¤parameter name=\"a\" string=\"false\">1.0</¤parameter>\n\n\
    <¤parameter name=\"b\" string=\"true\">x </¤parameter></¤invoke>\n</¤tool_calls>";

/// A conversation, the answer to it, and its prompt with that answer's ids.
fn called(replay: &Arc<Replay>) -> (Vec<Message>, Whole, Vec<u32>) {
    let messages = vec![Message::system("Be brief."), Message::user("1 + x?")];
    let first = replay.render(OWNER, &asked(messages.clone()));
    let mut prompt = first.prompt.ids(&tokenizer()).unwrap();
    let sampled = spelled(CALL);
    let whole =
        answered(replay, first.before.unwrap(), reading(true), &sampled, engine::Finish::Stop);
    assert_eq!(whole.calls.len(), 1);
    assert_eq!(whole.calls[0].arguments, "{\"a\": 1.0, \"b\": \"x \"}");
    prompt.extend(sampled);
    (messages, whole, prompt)
}

#[test]
fn a_call_comes_back_to_the_token() {
    let replay = replay();
    let (mut messages, whole, known) = called(&replay);
    let mut back = sent_back(&whole);
    // As a client in JavaScript writes it, keys sorted by another one, with Anthropic's prefix.
    back.tool_calls[0].arguments = "{\"b\":\"x \",\"a\":1}".to_owned();
    back.tool_calls[0].id = back.tool_calls[0].id.replace("call_", "toolu_");
    for reasoning in [None, Some(String::new()), Some(" I must\n".to_owned())] {
        back.reasoning = reasoning;
        let mut messages = messages.clone();
        messages.extend([back.clone(), Message::tool(back.tool_calls[0].id.clone(), "2")]);
        let next = ids(&replay, OWNER, &asked(messages.clone()));
        assert_eq!(next[..known.len()], known);
        assert_eq!(next[known.len()], tokenizer().control().eos);
        let stranger = ids(&replay, STRANGER, &asked(messages));
        assert!(!stranger.starts_with(&known), "another's call");
    }
    messages.push(back);
}

#[test]
fn an_edited_message_is_rendered_as_it_stands() {
    let replay = replay();
    let (messages, whole, known) = called(&replay);
    let same = sent_back(&whole);
    let edit = |edit: &dyn Fn(&mut Message)| {
        let mut message = same.clone();
        edit(&mut message);
        message
    };
    let edits = [
        edit(&|message| message.content.push_str("and more")),
        edit(&|message| message.reasoning = Some("I need not".to_owned())),
        edit(&|message| message.tool_calls[0].name = "sub".to_owned()),
        edit(&|message| message.tool_calls[0].arguments = "{\"a\":2,\"b\":\"x \"}".to_owned()),
        edit(&|message| message.tool_calls[0].arguments = "{\"a\":1,\"b\":\"x\"}".to_owned()),
        edit(&|message| message.tool_calls[0].id = format!("call_{:032x}", 7)),
        edit(&|message| message.tool_calls.push(message.tool_calls[0].clone())),
        edit(&|message| message.tool_calls.clear()),
    ];
    for edited in edits {
        let mut messages = messages.clone();
        messages.extend([edited, Message::user("go on")]);
        let plain = asked(messages.clone()).render().ids(&tokenizer()).unwrap();
        let next = ids(&replay, OWNER, &asked(messages));
        assert_eq!(next, plain);
        assert!(!next.starts_with(&known));
    }
}

#[test]
fn a_text_comes_back_by_its_conversation() {
    let replay = replay();
    let messages = vec![Message::user("Hi")];
    let first = replay.render(OWNER, &asked(messages.clone()));
    let mut known = first.prompt.ids(&tokenizer()).unwrap();
    let sampled = spelled("hm]Hello there ");
    let before = first.before.unwrap();
    let whole = answered(&replay, before, reading(true), &sampled, engine::Finish::Stop);
    known.extend(&sampled);
    let next = |messages: &[Message], namespace| ids(&replay, namespace, &asked(messages.to_vec()));

    // Most clients trim, and drop the reasoning.
    let back = Message::assistant(whole.text.trim());
    let follow = [messages[0].clone(), back.clone(), Message::user("more")];
    assert_eq!(next(&follow, OWNER)[..known.len()], known);
    assert!(!next(&follow, STRANGER).starts_with(&known));
    let elsewhere = [Message::user("Hi!"), back.clone(), Message::user("more")];
    let plain = asked(elsewhere.to_vec()).render().ids(&tokenizer()).unwrap();
    assert_eq!(next(&elsewhere, OWNER), plain, "planted in another conversation");

    // Without tools the template drops reasoning, and the rest still comes back.
    let chat = Conversation { tools: Vec::new(), ..asked(follow.to_vec()) };
    let first = Conversation { tools: Vec::new(), ..asked(messages.clone()) };
    let first = replay.render(OWNER, &first).before.unwrap();
    answered(&replay, first, reading(true), &sampled, engine::Finish::Stop);
    let dropped = ids(&replay, OWNER, &chat);
    let text = spelled("Hello there ");
    assert!(dropped.windows(text.len()).any(|window| window == text));
    assert!(!dropped.windows(sampled.len()).any(|window| window == sampled));
}

#[test]
fn a_note_brings_back_reasoning_that_all_else_has_forgotten() {
    let secret = Secret::random();
    let replay = Arc::new(Replay::new(tokenizer(), secret.clone(), 1 << 20));
    let messages = vec![Message::user("Hi")];
    let before = replay.render(OWNER, &asked(messages.clone())).before.unwrap();
    let sampled = spelled("hm]Hello");
    let whole = answered(&replay, before, reading(true), &sampled, engine::Finish::Stop);
    let note = whole.end.unwrap().replay.unwrap();

    let follow = |reasoning: Option<&str>, note: &str| {
        let back = Message {
            replay: Some(note.to_owned()),
            reasoning: reasoning.map(str::to_owned),
            ..Message::assistant("Hello")
        };
        asked(vec![messages[0].clone(), back, Message::user("more")])
    };
    let has = |ids: &[u32], part: &str| {
        let part = spelled(part);
        ids.windows(part.len()).any(|window| window == part)
    };
    let later = Replay::new(tokenizer(), secret, 1 << 20);
    for shown in [None, Some(""), Some("hm")] {
        let next = ids(&later, OWNER, &follow(shown, &note));
        assert!(has(&next, "hm]") && !has(&next, "hm]Hello"), "{shown:?}");
    }
    assert!(!has(&ids(&later, OWNER, &follow(Some("other"), &note)), "hm]"), "edited");
    assert!(!has(&ids(&later, STRANGER, &follow(None, &note)), "hm]"), "another's");
    let other = Replay::new(tokenizer(), Secret::random(), 1 << 20);
    assert!(!has(&ids(&other, OWNER, &follow(None, &note)), "hm]"), "another server's");
    assert!(!has(&ids(&later, OWNER, &follow(None, &note[1..])), "hm]"), "forged");
    // While it is known, the note alone is enough, whatever came before.
    let mut elsewhere = follow(None, &note);
    elsewhere.messages[0] = Message::user("What?");
    assert!(has(&ids(&replay, OWNER, &elsewhere), "hm]Hello"));
}

#[test]
fn records_go_with_the_tokens_they_belong_to() {
    let replay = replay();
    let (mut messages, whole, known) = called(&replay);
    answered(
        &replay,
        Fingerprint([9; 32]),
        reading(true),
        &spelled("x]other"),
        engine::Finish::Stop,
    );
    let attachment = replay.attachment(OWNER, &known);
    assert!(!attachment.is_empty() && attachment.len() < 2000, "{}", attachment.len());
    assert!(replay.attachment(STRANGER, &known).is_empty());
    assert!(replay.attachment(OWNER, &known[..20]).is_empty());

    let restarted = Replay::new(tokenizer(), Secret::random(), 1 << 20);
    restarted.restore(OWNER, &attachment);
    messages.extend([sent_back(&whole), Message::tool(whole.calls[0].id.clone(), "2")]);
    let next = ids(&restarted, OWNER, &asked(messages.clone()));
    assert_eq!(next[..known.len()], known);
    assert!(!restarted.attachment(OWNER, &next).is_empty());
    for at in 0..attachment.len() {
        let mut damaged = attachment.clone();
        damaged[at] ^= 0x10;
        let other = Replay::new(tokenizer(), Secret::random(), 1 << 20);
        other.restore(OWNER, &damaged);
        ids(&other, OWNER, &asked(messages.clone()));
    }
}

#[test]
fn an_answer_that_was_taken_apart_is_put_together() {
    let replay = replay();
    let messages = vec![Message::user("Hi")];
    let first = replay.render(OWNER, &asked(messages.clone()));
    let mut known = first.prompt.ids(&tokenizer()).unwrap();
    let call = |value: &str| {
        format!(
            "<¤invoke name=\"add\">\n<¤parameter name=\"a\" string=\"true\">{value}</¤parameter>\n\
             </¤invoke>\n"
        )
    };
    let text = format!("]Well\n\n<¤tool_calls>\n{}{}</¤tool_calls>", call("one"), call("two"));
    let sampled = spelled(&text);
    let before = first.before.unwrap();
    let whole = answered(&replay, before, reading(true), &sampled, engine::Finish::Stop);
    known.extend(&sampled);
    let [one, two] = whole.calls.try_into().unwrap();
    let calling = |calls: Vec<ToolCall>| Message { tool_calls: calls, ..Message::assistant("") };
    let results = [Message::tool(one.id.clone(), "1"), Message::tool(two.id.clone(), "2")];
    let user = messages[0].clone();
    let together = Message { content: "Well".into(), ..calling(vec![one.clone(), two.clone()]) };
    let whole = vec![user.clone(), together, results[0].clone(), results[1].clone()];
    let expected = ids(&replay, OWNER, &asked(whole));
    assert_eq!(expected[..known.len()], known);
    let apart = [
        vec![
            user.clone(),
            Message::assistant("Well"),
            calling(vec![one.clone(), two.clone()]),
            results[0].clone(),
            results[1].clone(),
        ],
        vec![
            user.clone(),
            Message { content: "Well".into(), ..calling(vec![one.clone()]) },
            results[0].clone(),
            calling(vec![two.clone()]),
            results[1].clone(),
        ],
        vec![
            user,
            Message::assistant("Well"),
            calling(vec![one]),
            calling(vec![two]),
            results[1].clone(),
            results[0].clone(),
        ],
    ];
    for messages in apart {
        assert_eq!(ids(&replay, OWNER, &asked(messages)), expected);
    }
}

#[test]
fn what_follows_a_stop_is_not_repeated() {
    let replay = replay();
    let messages = vec![Message::user("Hi")];
    let first = replay.render(OWNER, &asked(messages.clone()));
    let known = first.prompt.ids(&tokenizer()).unwrap();
    let sampled = spelled("hm]one é STOP");
    let before = first.before.unwrap();
    let whole = answered(&replay, before, reading(true), &sampled, engine::Finish::Stop);
    assert_eq!(whole.text, "one é ");
    let follow = [messages[0].clone(), sent_back(&whole), Message::user("more")];
    let next = ids(&replay, OWNER, &asked(follow.to_vec()));
    let kept = &sampled[..sampled.len() - "STOP".len()];
    assert_eq!(next[known.len()..known.len() + kept.len()], *kept);
    assert_eq!(next[known.len() + kept.len()], tokenizer().control().eos);
}

#[test]
fn one_call_of_several_is_closed() {
    let replay = replay();
    let messages = vec![Message::user("Hi")];
    let first = replay.render(OWNER, &asked(messages.clone()));
    let sampled = spelled("hm]\n\n<¤tool_calls>\n<¤invoke name=\"add\">\n</¤invoke>\n<¤invoke");
    let reading = Reading { parallel_tool_calls: false, ..reading(true) };
    let before = first.before.unwrap();
    let whole = answered(&replay, before, reading, &sampled, engine::Finish::Stop);
    assert_eq!(whole.calls.len(), 1);
    let follow = [messages[0].clone(), sent_back(&whole)];
    let next = tokenizer().decode(&ids(&replay, OWNER, &asked(follow.to_vec())));
    let closed = "</｜DSML｜invoke>\n</｜DSML｜tool_calls><｜end▁of▁sentence｜>";
    assert!(next.contains(closed), "{next}");
}

#[test]
fn an_answer_that_was_cut_in_a_call_is_not_repeated() {
    let replay = replay();
    let messages = vec![Message::user("Hi")];
    let first = replay.render(OWNER, &asked(messages.clone()));
    let sampled = &spelled(CALL)[..70];
    let before = first.before.unwrap();
    let whole = answered(&replay, before, reading(true), sampled, engine::Finish::Length);
    assert!(whole.cut && whole.calls.len() == 1);
    let follow = asked(vec![messages[0].clone(), sent_back(&whole)]);
    assert_eq!(ids(&replay, OWNER, &follow), follow.render().ids(&tokenizer()).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever the model writes: what a client then sends back continues the same ids.
    #[test]
    fn any_answer_is_repeated_to_the_token((text, finish) in replies(), thinks: bool) {
        let replay = replay();
        let messages = vec![Message::user("Hi")];
        let thinking = if thinks { Thinking::On } else { Thinking::Off };
        let asked = |messages| Conversation { thinking, ..asked(messages) };
        let first = replay.render(OWNER, &asked(messages.clone()));
        let known = first.prompt.ids(&tokenizer()).unwrap();
        let sampled = spelled(&text);
        let keep = replay.keeper(OWNER, first.before.unwrap(), reading(thinks));
        let played = played::events(reading(thinks), Some(keep), &sampled, finish);
        // A call that cannot be read is an error, and nothing is sent back.
        let Ok((events, taken)) = played else { return Ok(()) };
        let whole = played::whole(&events);
        let follow = asked(vec![messages[0].clone(), sent_back(&whole), Message::user("more")]);
        let next = ids(&replay, OWNER, &follow);
        let stopped = matches!(whole.end.as_ref().unwrap().finish, Finish::StopText(_));
        if !stopped && !whole.cut {
            let end = known.len() + taken;
            prop_assert_eq!(&next[known.len()..end], &sampled[..taken]);
        }
    }
}
