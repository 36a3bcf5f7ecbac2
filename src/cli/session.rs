//! A model, and the conversation with it.

use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;

use super::failure::Failure;
use super::interrupt::Answering;
use super::model_path::ModelPath;
use super::options::{affordable, Options};
use super::progress::PrefillBar;
use super::terminal::{program, tell};
use super::view::View;
use candle_core::Device;

use crate::cache::store::{Store, DEFAULT_BUDGET};
use crate::demo::demo_model;
use crate::engine::{
    open_store, Engine, EngineError, Finish, Outcome, Progress, Request, Sequence,
};
use crate::gguf::Gguf;
use crate::hub;
use crate::model::Model;
use crate::prompt::{Conversation, Event, Message, Reader, Role, Thinking, Tool, ToolCall};
use crate::sample::Sampling;
use crate::tokenizer::Tokenizer;

/// What is said when the demo model is used.
fn demo_note() -> String {
    format!(
        "no model given, so this is the bundled demo model, a tiny one. DeepSeek V4 Flash itself: \
         `ds4 pull q2-imatrix` (81 GB), then `{} -m q2-imatrix`; `ds4 doctor` says what fits this \
         machine",
        program()
    )
}

/// Why an answer ended, in the words of the JSON output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The model ended it.
    Stop,
    /// It has as many tokens as it may.
    Length,
    /// The context is full.
    Context,
    /// The model calls tools.
    ToolCalls,
    /// Ctrl-C.
    Interrupted,
}

impl End {
    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Context => "context",
            Self::ToolCalls => "tool_calls",
            Self::Interrupted => "interrupted",
        }
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// What was said.
    pub message: Message,
    /// In numbers.
    pub outcome: Outcome,
    /// Why it ended.
    pub end: End,
}

/// A model and a conversation.
pub struct Session {
    gguf: Gguf,
    engine: Engine,
    sequence: Sequence,
    /// Folder of the store that remembers what the model knows of saved conversations.
    store: Option<PathBuf>,
    /// What messages call the model.
    pub model: String,
    /// The system prompt, if there is one.
    pub system: Option<String>,
    /// What was said, the system prompt apart.
    pub messages: Vec<Message>,
    /// What the model may call.
    pub tools: Vec<Tool>,
    /// How hard to think.
    pub thinking: Thinking,
    /// How tokens are chosen; the seed is the next answer's.
    pub sampling: Sampling,
    /// Most tokens of an answer.
    pub max_tokens: usize,
    /// A bar may be shown while a prompt is read.
    pub progress: bool,
}

/// Opens the file that a model comes from; says so if it is the demo.
///
/// # Errors
/// No such file, or no GGUF in it.
pub fn open(model: &ModelPath) -> Result<Gguf, Failure> {
    let gguf = match model {
        ModelPath::File(path) => match path.to_str().filter(|name| hub::as_name(name).is_some()) {
            Some(name) => {
                let path = hub::locate(name).map_err(|e| Failure::Input(e.to_string()))?;
                Gguf::open(&path)
            }
            None => Gguf::open(path),
        },
        ModelPath::Demo => {
            tell(&demo_note());
            Gguf::from_bytes(demo_model())
        }
    };
    gguf.map_err(|error| Failure::load(&model.name(), &EngineError::Gguf(error)))
}

/// The tokenizer of a model, without the model.
///
/// # Errors
/// No such file, or no vocabulary in it.
pub fn open_tokenizer(model: &ModelPath) -> Result<Tokenizer, Failure> {
    let gguf = open(model)?;
    let file = model.name();
    Tokenizer::from_gguf(&gguf).map_err(|error| {
        Failure::load(&file, &EngineError::Tokenizer { file: file.clone(), error })
    })
}

/// A model and its vocabulary.
///
/// # Errors
/// No such file, not a model that can be run, or no memory for it.
pub fn open_engine(model: &ModelPath, device: &Device) -> Result<Engine, Failure> {
    let name = model.name();
    Engine::from_gguf(&open(model)?, &name, device).map_err(|error| Failure::load(&name, &error))
}

/// A model without a vocabulary, which its file need not have.
///
/// # Errors
/// No such file, not a model that can be run, or no memory for it.
pub fn open_model(model: &ModelPath, device: &Device) -> Result<Model, Failure> {
    let file = model.name();
    Model::load(&open(model)?, device).map_err(|error| {
        Failure::load(&file, &EngineError::Load { file: file.clone(), error: Box::new(error) })
    })
}

impl Session {
    /// Loads the model.
    ///
    /// # Errors
    /// No such file, not a model that can be run, or no memory for it.
    pub fn open(options: &Options) -> Result<Self, Failure> {
        let name = options.model.name();
        let gguf = open(&options.model)?;
        let engine = Engine::from_gguf(&gguf, &name, &options.device)
            .map_err(|error| Failure::load(&name, &error))?
            .with_context(options.context);
        let sequence = engine.new_sequence()?;
        Ok(Self {
            thinking: affordable(options.thinking, engine.context()),
            gguf,
            engine,
            sequence,
            store: options.store.clone(),
            model: name,
            system: options.system.clone(),
            messages: Vec::new(),
            tools: options.tools.clone(),
            sampling: options.sampling.clone(),
            max_tokens: options.max_tokens,
            progress: options.terminal.stderr && options.terminal.styles,
        })
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What the model remembers.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// Sequences may have at most `tokens` tokens from now on; returns how many it is.
    pub fn set_context(&mut self, tokens: usize) -> usize {
        self.engine.set_context(tokens);
        self.engine.context()
    }

    /// Asks for an answer to the conversation and adds it, unless it was interrupted before it
    /// had any text: then the conversation still ends with the question.
    ///
    /// # Errors
    /// The prompt is too long, the model fails, or the view does; the conversation is as before.
    pub fn answer(&mut self, view: &mut View) -> Result<Reply, Failure> {
        let prompt = self.prompt()?;
        let request =
            Request { prompt, sampling: self.sampling.clone(), max_tokens: self.max_tokens };
        // The next answer, or the next attempt at this one, should be another.
        self.sampling.seed = self.sampling.seed.wrapping_add(1);

        let tokenizer = self.engine.tokenizer();
        let mut reader = Reader::new(tokenizer, self.thinking);
        let mut writing = Writing { message: Message::assistant(""), view, called: false };
        let mut output = Ok(());
        let mut bar = PrefillBar::begin(self.progress);
        let answering = Answering::begin();
        let outcome = self.engine.generate(&mut self.sequence, &request, &mut |progress| {
            match progress {
                Progress::Prefill { done, total } => {
                    bar.set(done, total);
                    if done == total {
                        bar.finish();
                    }
                }
                Progress::Token(token) => {
                    output = writing.take(&reader.push(tokenizer, token));
                }
            }
            if output.is_err() || writing.called || answering.stopped() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        drop(bar);
        let stopped = answering.stopped();
        if output.is_ok() {
            output = writing.take(&reader.finish()).and_then(|()| writing.view.finish());
        }
        // What the model said before it failed is shown, and then why it ends.
        let outcome = outcome?;
        output.map_err(Failure::output)?;
        let end = match outcome.finish {
            Finish::Caller if writing.called => End::ToolCalls,
            Finish::Caller | Finish::Stopping => End::Interrupted,
            Finish::Stop if stopped => End::Interrupted,
            Finish::Stop if !writing.message.tool_calls.is_empty() => End::ToolCalls,
            Finish::Stop => End::Stop,
            Finish::Length => End::Length,
            Finish::Context => End::Context,
        };
        let message = writing.message;
        let said_something = !message.content.is_empty() || !message.tool_calls.is_empty();
        if said_something || end != End::Interrupted {
            self.messages.push(message.clone());
        }
        Ok(Reply { message, outcome, end })
    }

    /// The ids of the conversation so far.
    fn prompt(&self) -> Result<Vec<u32>, EngineError> {
        let conversation =
            conversation(self.system.as_deref(), &self.messages, &self.tools, self.thinking);
        conversation.render().ids(self.engine.tokenizer()).map_err(EngineError::Prompt)
    }

    /// Keeps what the model remembers of the conversation in the store, so that it need not be
    /// computed again; returns how many tokens that is.
    ///
    /// # Errors
    /// Why it could not be kept; the conversation itself has nothing to do with it.
    pub fn save_state(&mut self) -> anyhow::Result<usize> {
        let (store, prompt) = (self.open_store()?, self.prompt()?);
        self.sequence.save(&self.engine, &store, &prompt).map_err(anyhow::Error::from_boxed)
    }

    /// Takes what the store has of the conversation; returns how many of its tokens are known now,
    /// and how many it has.
    ///
    /// # Errors
    /// Why nothing could be had; the conversation will be computed again.
    pub fn load_state(&mut self) -> anyhow::Result<(usize, usize)> {
        let (store, prompt) = (self.open_store()?, self.prompt()?);
        let known = self.sequence.load(&self.engine, &store, &prompt);
        Ok((known.map_err(anyhow::Error::from_boxed)?, prompt.len()))
    }

    fn open_store(&self) -> anyhow::Result<Store> {
        let folder = self.store.as_deref().ok_or_else(|| {
            anyhow::anyhow!(
                "there is no folder for caches (HOME is not set): use --kv-disk-dir DIR"
            )
        })?;
        Ok(open_store(&self.gguf, &self.engine, folder, DEFAULT_BUDGET)?)
    }

    /// Takes back an answer, if the conversation ends with one.
    pub fn take_back_answer(&mut self) {
        if self.messages.last().is_some_and(|message| message.role == Role::Assistant) {
            self.messages.pop();
        }
    }

    /// Takes back the last question, with its answer if it has one; returns it.
    pub fn take_back_turn(&mut self) -> Option<Message> {
        self.take_back_answer();
        self.messages.pop()
    }

    /// Whether the conversation ends with a question that was not answered.
    pub fn awaits_answer(&self) -> bool {
        self.messages.last().is_some_and(|message| message.role != Role::Assistant)
    }

    /// Adds a question. One that was not answered makes room for it.
    pub fn ask(&mut self, question: String) {
        if self.awaits_answer() {
            self.messages.pop();
        }
        self.messages.push(Message::user(question));
    }
}

/// A prompt to be.
pub fn conversation(
    system: Option<&str>,
    messages: &[Message],
    tools: &[Tool],
    thinking: Thinking,
) -> Conversation {
    let system = system.map(Message::system);
    Conversation {
        messages: system.into_iter().chain(messages.iter().cloned()).collect(),
        tools: tools.to_vec(),
        thinking,
        ..Conversation::default()
    }
}

/// An answer that is being written.
struct Writing<'v> {
    message: Message,
    view: &'v mut View,
    /// A block of calls is complete, after which the model has nothing to say.
    called: bool,
}

impl Writing<'_> {
    fn take(&mut self, events: &[Event]) -> io::Result<()> {
        for event in events {
            self.view.show(event)?;
            let message = &mut self.message;
            match event {
                Event::Reasoning(text) => {
                    message.reasoning.get_or_insert_with(String::new).push_str(text);
                }
                Event::Text(text) => message.content.push_str(text),
                Event::ToolCallBegin { index, name } => message.tool_calls.push(ToolCall {
                    id: format!("call_{index}"),
                    name: name.clone(),
                    arguments: String::new(),
                }),
                Event::ToolArguments { fragment, .. } => {
                    if let Some(call) = message.tool_calls.last_mut() {
                        call.arguments.push_str(fragment);
                    }
                }
                Event::ToolCallEnd { .. } => {}
                Event::ToolCallsEnd => self.called = true,
                // What makes no call is text; the call that it would have been is none.
                Event::Malformed { call, raw, .. } => {
                    if call.is_some() {
                        message.tool_calls.pop();
                    }
                    message.content.push_str(raw);
                }
            }
        }
        Ok(())
    }
}
