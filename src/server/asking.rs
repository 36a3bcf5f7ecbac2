//! From a request to running answers.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use super::app::{App, Caller};
use super::error::ApiError;
use super::readers::{stopping, Memory};
use super::structure;
use super::trace::Traced;
use super::{Answer, Content, Event, Finish, Format, Input, Reading, Request, ToolChoice};
use super::{Usage, Whole};
use crate::engine::{Guide, Job, Update, Updates};
use crate::guide::GuideError;
use crate::prompt::{Conversation, Ending, Fingerprint, Rendered, Replayed, Role, Tokens};

/// Tokens of an answer that memory is set aside for if a request does not say how many it wants:
/// most answers have fewer, and the whole context for each would let few run at a time.
const USUAL_ANSWER: usize = 4096;

/// The ids that a request begins with, and how to read what follows them.
pub(super) struct Prompt {
    /// The ids.
    pub ids: Vec<u32>,
    /// Lengths of prefixes that other prompts may share.
    pub landmarks: Vec<usize>,
    content: Content,
    /// What the answer will be recalled by.
    before: Option<Fingerprint>,
}

/// The answers to one request, running.
///
/// Dropping it cancels what has not ended.
pub struct Answers {
    app: App,
    caller: Caller,
    prompt: Arc<[u32]>,
    runs: Vec<Run>,
    /// Whose turn it is to be asked first.
    turn: usize,
    start: Instant,
}

struct Run {
    updates: Option<Updates>,
    answer: Answer,
    events: VecDeque<Event>,
    prefilled: bool,
    last_token: Option<Instant>,
    finish: Option<Finish>,
}

impl App {
    /// Renders a request and finds out whether it fits.
    ///
    /// # Errors
    /// The prompt is empty or too long, or no thread is free to read it in time.
    pub(super) async fn prompt(
        &self,
        caller: &Caller,
        request: &Request,
        memory: &Memory,
    ) -> Result<Prompt, ApiError> {
        let inner = Arc::clone(&self.0);
        let (namespace, context) = (caller.namespace, inner.service.context());
        let most = inner.service.config().context_length;
        let input = request.input.clone();
        let no_calls = request.tool_choice == ToolChoice::None;
        let reading = self.0.readers.read(memory, move || {
            let tokenizer = inner.service.tokenizer();
            let fits = |bytes: usize| {
                // No token is longer, so there are at least this many.
                let least = bytes / inner.longest_token.max(1);
                let too_long = || ApiError::context(least, false, context, most);
                if least >= context {
                    Err(too_long())
                } else {
                    Ok(())
                }
            };
            let (Tokens { ids, landmarks }, content, before) = match input {
                Input::Chat(mut conversation) => {
                    if no_calls {
                        conversation.tools.clear();
                    }
                    conversation.thinking = conversation.thinking.within(context);
                    let content = Content::Reply {
                        reasoning: begins_with_reasoning(&conversation),
                        tools: !conversation.tools.is_empty(),
                    };
                    fits(said(&conversation))?;
                    let Replayed { prompt, before } = match &inner.replay {
                        Some(replay) => replay.render(namespace, &conversation),
                        None => Replayed { prompt: conversation.render(), before: None },
                    };
                    (prompt.tokens(tokenizer).map_err(no_control)?, content, before)
                }
                Input::Text(text) => {
                    fits(text.len())?;
                    let prompt = Rendered::completion(&text);
                    (prompt.tokens(tokenizer).map_err(no_control)?, Content::Text, None)
                }
                Input::Tokens(ids) => (Tokens { ids, landmarks: Vec::new() }, Content::Text, None),
            };
            if ids.is_empty() {
                return Err(ApiError::field("prompt", "prompt: is empty"));
            }
            if ids.len() >= context {
                return Err(ApiError::context(ids.len(), true, context, most));
            }
            Ok(Prompt { ids, landmarks, content, before })
        });
        reading.await?
    }

    /// What holds each answer to the form that a request asks for.
    async fn guides(
        &self,
        request: &Request,
        memory: &Memory,
    ) -> Result<Vec<Option<Box<dyn Guide>>>, ApiError> {
        let inner = Arc::clone(&self.0);
        let request = request.clone();
        let request_has_schema = matches!(request.format, Format::JsonSchema(_));
        let building = self.0.readers.read(memory, move || {
            (0..request.n).map(|_| structure::guide(&inner.guides, &request)).collect()
        });
        let built: Result<Vec<_>, GuideError> = building.await?;
        built.map_err(|error| {
            let param = match error {
                GuideError::Schema { .. } if request_has_schema => "response_format",
                GuideError::Schema { .. } => "tools",
                _ => "tool_choice",
            };
            ApiError::field(param, error.to_string())
        })
    }

    /// Asks the engine for the answers that a request wants, whose body takes up `memory`. `call_prefix` is
    /// what the ids of calls begin with.
    ///
    /// # Errors
    /// The prompt is empty or too long, or the engine takes no more requests.
    pub(super) async fn ask(
        &self,
        caller: &Caller,
        request: &Request,
        memory: &Memory,
        call_prefix: &'static str,
    ) -> Result<Answers, ApiError> {
        let start = Instant::now();
        let inner = &self.0;
        let Prompt { ids, landmarks, content, before } =
            self.prompt(caller, request, memory).await?;
        let guides = self.guides(request, memory).await?;
        let tokenizer = inner.service.tokenizer();
        let max_tokens = request.max_tokens.unwrap_or(inner.settings.max_tokens);
        let mut answers = Answers {
            app: self.clone(),
            caller: caller.clone(),
            prompt: ids.clone().into(),
            runs: Vec::with_capacity(request.n),
            turn: 0,
            start,
        };
        for (index, guide) in guides.into_iter().enumerate() {
            let mut sampling = request.sampling.clone();
            sampling.seed = sampling.seed.wrapping_add(index as u64);
            let updates = inner.service.submit(Job {
                prompt: ids.clone(),
                sampling,
                max_tokens: max_tokens.min(inner.service.context()),
                room: request.max_tokens.unwrap_or(USUAL_ANSWER),
                guide,
                logprobs: request.logprobs,
                namespace: caller.namespace,
                landmarks: landmarks.clone(),
            })?;
            let reading = Reading {
                content,
                stop: request.stop.clone(),
                parallel_tool_calls: request.parallel_tool_calls,
                call_prefix,
            };
            let keep =
                inner.replay.as_ref().zip(before).map(|(replay, before)| {
                    replay.keeper(caller.namespace, before, reading.clone())
                });
            answers.runs.push(Run {
                updates: Some(updates),
                answer: Answer::new(Arc::clone(tokenizer), reading, keep),
                events: VecDeque::new(),
                prefilled: false,
                last_token: None,
                finish: None,
            });
        }
        Ok(answers)
    }
}

fn no_control(error: crate::tokenizer::Error) -> ApiError {
    ApiError::field("messages", error.to_string())
}

/// Bytes that the messages of a conversation have at least.
fn said(conversation: &Conversation) -> usize {
    let last_user = conversation.messages.iter().rposition(|message| message.role == Role::User);
    let counted = |(index, message): (usize, &crate::prompt::Message)| {
        // Forgotten turns of a developer do not count.
        let counts = message.role != Role::Developer || last_user.is_none_or(|last| index >= last);
        if counts {
            message.content.len()
        } else {
            0
        }
    };
    conversation.messages.iter().enumerate().map(counted).sum()
}

/// Whether the model's first token is one of reasoning.
fn begins_with_reasoning(conversation: &Conversation) -> bool {
    let last = conversation.messages.last();
    let continues = conversation.ending == Ending::Continue
        && last.is_some_and(|message| {
            let said = !message.content.is_empty() || !message.tool_calls.is_empty();
            message.role == Role::Assistant && said
        });
    conversation.thinking.is_on() && !continues
}

impl Answers {
    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt.len()
    }

    /// How many answers there are.
    pub fn count(&self) -> usize {
        self.runs.len()
    }

    /// The next event, and of which answer; `None` after all have ended. An error ends it all.
    ///
    /// Nothing is lost if the future is dropped before it is ready.
    pub async fn next(&mut self) -> Option<(usize, Result<Event, ApiError>)> {
        let mut cut = self.app.0.cut.clone();
        tokio::select! {
            biased;
            next = poll_fn(|context| self.poll(context)) => next,
            _ = cut.wait_for(|cut| *cut) => {
                self.runs.clear();
                Some((0, Err(stopping())))
            }
        }
    }

    /// The next event if it is there already.
    pub fn ready(&mut self) -> Option<(usize, Event)> {
        let count = self.runs.len();
        (0..count).find_map(|index| self.runs[index].events.pop_front().map(|e| (index, e)))
    }

    /// All answers in one piece.
    ///
    /// # Errors
    /// One of them failed.
    pub async fn whole(mut self) -> Result<Vec<Whole>, ApiError> {
        let mut wholes = vec![Whole::new(); self.runs.len()];
        while let Some((index, event)) = self.next().await {
            let event = event?;
            if let Some(whole) = wholes.get_mut(index) {
                whole.push(event);
            }
        }
        Ok(wholes)
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<(usize, Result<Event, ApiError>)>> {
        let count = self.runs.len();
        let mut open = false;
        for offset in 0..count {
            let index = (self.turn + offset) % count;
            match self.poll_run(index, context) {
                Poll::Ready(Some(event)) => {
                    self.turn = (index + 1) % count;
                    return Poll::Ready(Some((index, event)));
                }
                Poll::Ready(None) => {}
                Poll::Pending => open = true,
            }
        }
        if open {
            Poll::Pending
        } else {
            Poll::Ready(None)
        }
    }

    fn poll_run(
        &mut self,
        index: usize,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Event, ApiError>>> {
        let metrics = &self.app.0.metrics;
        let run = &mut self.runs[index];
        loop {
            if let Some(event) = run.events.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            let Some(updates) = &mut run.updates else { return Poll::Ready(None) };
            let update = match updates.poll_recv(context) {
                Poll::Ready(Some(update)) => update,
                Poll::Ready(None) => {
                    run.updates = None;
                    return Poll::Ready(Some(Err(stopping())));
                }
                Poll::Pending => return Poll::Pending,
            };
            if matches!(update, Update::Token(_)) {
                let now = Instant::now();
                match run.last_token.replace(now) {
                    Some(last) => metrics.next_token(now - last),
                    None => metrics.first_token(now - self.start),
                }
            }
            let mut events = Vec::new();
            let result = run.answer.push(update, &mut events);
            for event in &events {
                match event {
                    Event::Begin(usage) if !run.prefilled => {
                        run.prefilled = true;
                        metrics.prefilled(*usage);
                    }
                    Event::End(end) => run.finish = Some(end.finish.clone()),
                    _ => {}
                }
            }
            run.events.extend(events);
            if let Err(error) = result {
                run.updates = None;
                run.events.clear();
                let error = ApiError::from(error);
                tracing::warn!(request = self.caller.request_id, %error, "answer failed");
                return Poll::Ready(Some(Err(error)));
            }
            if run.answer.is_done() {
                // Whatever the engine would still say, nobody needs.
                run.updates = None;
            }
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        let inner = &self.app.0;
        let elapsed = self.start.elapsed();
        for run in &self.runs {
            let usage = run.answer.usage();
            inner.metrics.ended(run.finish.as_ref(), usage, elapsed);
            log(&self.caller.request_id, run, usage, elapsed.as_secs_f64());
            if let Some(tracer) = &inner.tracer {
                tracer.write(&Traced {
                    request: &self.caller.request_id,
                    namespace: self.caller.namespace,
                    prompt: &self.prompt,
                    answer: run.answer.ids(),
                    usage,
                    finish: run.finish.as_ref(),
                });
            }
        }
    }
}

fn log(request: &str, run: &Run, usage: Usage, seconds: f64) {
    let finish = match &run.finish {
        Some(Finish::Stop) => "stop",
        Some(Finish::StopText(_)) => "stop text",
        Some(Finish::Length) => "length",
        Some(Finish::Context) => "context",
        Some(Finish::ToolCalls) => "tool calls",
        None => "broken off",
    };
    tracing::info!(
        request,
        prompt = usage.prompt,
        cached = usage.cached,
        generated = usage.completion,
        reasoning = usage.reasoning,
        finish,
        seconds = (seconds * 1e3).round() / 1e3,
        "answer"
    );
}
