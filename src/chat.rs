//! `roost chat`: a terminal client. It logs in or registers, finds a person, sends, receives and shows history; lost
//! connections are its own business.

mod screen;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use roost_client::{
    Client, Config, Credentials, Event, Events, Outcome, Rest, RestError, SavedConversation, SavedState, SendHandle,
    Tokens, Trust,
};
use roost_protocol::frames::{HistoryRange, Message};
use roost_protocol::{ClientMsgId, ConversationId, Form, Seq, UserId};
use tokio::sync::mpsc;

use crate::compose::Problem;
use screen::Screen;

/// `roost chat`.
#[derive(Debug, Clone, Args)]
pub struct ChatArgs {
    /// The server; with separate roles, a gateway.
    #[arg(long, env = "ROOST_SERVER", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub server: String,
    /// Where REST is, if not at the server: with separate roles, the api.
    #[arg(long, env = "ROOST_API", value_name = "URL")]
    pub api: Option<String>,
    /// A file with certificates (PEM) to trust besides those of this system: a private authority's, or the server's own.
    #[arg(long, env = "ROOST_CA_CERTIFICATE", value_name = "FILE")]
    pub ca_certificate: Option<PathBuf>,
    /// Your name; asked for if absent.
    #[arg(long, env = "ROOST_NAME")]
    pub name: Option<String>,
    /// Your password; better typed than given.
    #[arg(long, env = "ROOST_PASSWORD", hide_env_values = true)]
    pub password: Option<String>,
    /// Whom to chat with; asked for if absent.
    #[arg(long, env = "ROOST_TO", value_name = "NAME")]
    pub to: Option<String>,
    /// Plain lines for scripts: each line of standard input is sent, each message is printed as `seq name: text`, and
    /// the program ends once its input has ended and everything is sent.
    #[arg(long, env = "ROOST_PLAIN")]
    pub plain: bool,
    /// Speak JSON instead of the binary form.
    #[arg(long, env = "ROOST_JSON")]
    pub json: bool,
}

/// Messages of a conversation that are shown when it is opened.
const SHOWN_AT_FIRST: u64 = 20;
/// Lines typed ahead of what is sent.
const LINES_MAX: usize = 256;
/// What became of sends, on the way to the screen.
const VERDICTS_MAX: usize = 1_024;

const HELP: &str = "\
Type a line to send it.
  /to NAME        chat with somebody else
  /history [N]    show the N messages before the oldest one shown (20)
  /help           this
  /quit           leave";

/// Runs until the user leaves.
pub async fn run(args: &ChatArgs) -> Result<(), Problem> {
    let screen = Screen::new(args.plain);
    let mut lines = lines_of_standard_input();
    let trust = trust(args)?;
    let rest = Rest::with_trust(args.api.as_deref().unwrap_or(&args.server), &trust).map_err(problem)?;
    let (name, tokens) = log_in(args, &rest, &screen, &mut lines).await?;
    let mut people = People { rest, names: HashMap::from([(tokens.user_id, name)]) };
    let room = match &args.to {
        Some(to) => people.open(&tokens, to).await?,
        None => people.ask_for_a_room(&tokens, &screen, &mut lines).await?,
    };
    let state = people.state_of(&tokens).await.map_err(problem)?;
    let config = Config {
        api_url: args.api.clone(),
        trust,
        form: if args.json { Form::Json } else { Form::Binary },
        client_name: concat!("roost chat ", env!("CARGO_PKG_VERSION")).to_owned(),
        state,
        ..Config::new(&args.server, Credentials::Tokens(tokens))
    };
    let (client, events) = Client::connect(config).await.map_err(|error| Problem::Other(error.to_string()))?;
    let (verdicts, verdicts_out) = mpsc::channel(VERDICTS_MAX);
    screen.note(&format!("chatting with {}; /help says what else can be typed", room.with));
    Chat { screen, people, client, room, oldest: HashMap::new(), own: HashMap::new(), waiting: 0, verdicts }
        .run(events, lines, verdicts_out)
        .await
}

/// Whom the user chats with, and where.
struct Room {
    with: String,
    conversation: ConversationId,
}

struct Chat {
    screen: Screen,
    people: People,
    client: Client,
    room: Room,
    /// The oldest message shown of each conversation.
    oldest: HashMap<ConversationId, Seq>,
    /// Messages typed here: they stand on the screen already.
    own: HashMap<ClientMsgId, String>,
    /// Sends without a verdict.
    waiting: usize,
    verdicts: mpsc::Sender<(ClientMsgId, Option<Outcome>)>,
}

impl Chat {
    async fn run(
        mut self,
        mut events: Events,
        mut lines: mpsc::Receiver<String>,
        mut verdicts: mpsc::Receiver<(ClientMsgId, Option<Outcome>)>,
    ) -> Result<(), Problem> {
        let mut typing = true;
        loop {
            if !typing && self.waiting == 0 {
                break;
            }
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => self.take(event).await?,
                    None => return Err(Problem::Other("the client has stopped".into())),
                },
                line = lines.recv(), if typing => match line {
                    Some(line) if line.trim() == "/quit" => typing = false,
                    Some(line) => self.typed(line.trim()).await?,
                    None => typing = false,
                },
                Some((id, outcome)) = verdicts.recv() => self.judged(id, outcome),
            }
        }
        // A copy that is on its way is still shown, where lines are what counts.
        if self.screen.is_plain() {
            let until = tokio::time::Instant::now() + Duration::from_millis(300);
            while let Ok(Some(event)) = tokio::time::timeout_at(until, events.next()).await {
                self.take(event).await?;
            }
        }
        // The client has nothing left to do; that it may have stopped already does not matter.
        let _ = self.client.stop().await;
        Ok(())
    }

    async fn typed(&mut self, line: &str) -> Result<(), Problem> {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("", _) => {}
            ("/help", _) => self.screen.note(HELP),
            ("/to", name) => match self.tokens() {
                Some(tokens) => match self.people.open(&tokens, name.trim()).await {
                    Ok(room) => {
                        self.screen.note(&format!("chatting with {}", room.with));
                        self.room = room;
                    }
                    Err(problem) => self.screen.note(&problem.to_string()),
                },
                None => self.screen.note("not logged in"),
            },
            ("/history", count) => self.show_history(count.trim().parse().unwrap_or(20)).await,
            (command, _) if command.starts_with('/') => {
                self.screen.note(&format!("{command} is not known; /help says what is"));
            }
            _ => self.send(line).await?,
        }
        Ok(())
    }

    async fn send(&mut self, text: &str) -> Result<(), Problem> {
        let stopped = |_| Problem::Other("the client has stopped".into());
        let handle: SendHandle = self.client.send_text(self.room.conversation, text).await.map_err(stopped)?;
        let id = handle.client_msg_id();
        self.own.insert(id, text.to_owned());
        self.waiting += 1;
        let verdicts = self.verdicts.clone();
        tokio::spawn(async move {
            let outcome = handle.await.ok();
            // The chat may be over.
            let _ = verdicts.send((id, outcome)).await;
        });
        Ok(())
    }

    fn judged(&mut self, id: ClientMsgId, outcome: Option<Outcome>) {
        self.waiting = self.waiting.saturating_sub(1);
        if let Some(Outcome::Rejected { code, message }) = outcome {
            let text = self.own.remove(&id).unwrap_or_default();
            self.screen.note(&format!("not sent ({code}: {message}): {text}"));
        }
    }

    async fn take(&mut self, event: Event) -> Result<(), Problem> {
        match event {
            Event::Message(message) => self.show(&message).await,
            Event::Connected { .. } => self.screen.note("connected"),
            Event::Disconnected { reason, reconnect_in: Some(wait), .. } => {
                self.screen.note(&format!("not connected ({reason}); trying again in {:.1} s", wait.as_secs_f64()));
            }
            Event::Stopped { reason } => return Err(Problem::Other(reason)),
            Event::Reloaded { .. } => self.screen.note("the server's history is another one: it is shown anew"),
            _ => {}
        }
        Ok(())
    }

    async fn show(&mut self, message: &Message) {
        let oldest = self.oldest.entry(message.conversation_id).or_insert(message.seq);
        *oldest = message.seq.min(*oldest);
        // What was typed here stands on the screen already.
        if self.own.remove(&message.client_msg_id).is_some() && !self.screen.is_plain() {
            return;
        }
        let tokens = self.tokens();
        let sender = self.people.name_of(tokens.as_ref(), message.sender_id).await;
        let elsewhere = message.conversation_id != self.room.conversation;
        self.screen.message(message, &sender, elsewhere);
    }

    async fn show_history(&mut self, count: u32) {
        let Some(tokens) = self.tokens() else { return self.screen.note("not logged in") };
        let conversation = self.room.conversation;
        let before = self.oldest.get(&conversation).copied().unwrap_or(Seq::MAX >> 1);
        let range = HistoryRange::Before(before);
        let page = self.people.rest.history(&tokens.access_token, conversation, range, Some(count.max(1))).await;
        match page {
            Ok(page) if page.messages.is_empty() => self.screen.note("there is nothing before"),
            Ok(page) => {
                for message in &page.messages {
                    self.show(message).await;
                }
            }
            Err(error) => self.screen.note(&format!("no history: {error}")),
        }
    }

    fn tokens(&self) -> Option<Tokens> {
        self.client.tokens()
    }
}

/// Names of users, asked for once each.
struct People {
    rest: Rest,
    names: HashMap<UserId, String>,
}

impl People {
    /// Asks until somebody is found: the other may be about to register.
    async fn ask_for_a_room(
        &mut self,
        tokens: &Tokens,
        screen: &Screen,
        lines: &mut mpsc::Receiver<String>,
    ) -> Result<Room, Problem> {
        loop {
            let name = screen.ask("Chat with: ", lines).await.ok_or_else(left)?;
            match self.open(tokens, &name).await {
                Ok(room) => return Ok(room),
                Err(problem) => screen.note(&problem.to_string()),
            }
        }
    }

    /// Finds a person and the direct conversation with them.
    async fn open(&mut self, tokens: &Tokens, name: &str) -> Result<Room, Problem> {
        let found = self.rest.find_user(&tokens.access_token, name).await.map_err(problem)?;
        let user = found.ok_or_else(|| Problem::Other(format!("there is nobody called {name}")))?;
        if user.user_id == tokens.user_id {
            return Err(Problem::Other("that is you; chat with somebody else".into()));
        }
        let created = self.rest.create_direct(&tokens.access_token, user.user_id).await.map_err(problem)?;
        self.names.insert(user.user_id, user.name.clone());
        Ok(Room { with: user.name, conversation: created.conversation_id })
    }

    async fn name_of(&mut self, tokens: Option<&Tokens>, user: UserId) -> String {
        if let Some(name) = self.names.get(&user) {
            return name.clone();
        }
        let Some(tokens) = tokens else { return user.to_string() };
        match self.rest.user(&tokens.access_token, user).await {
            Ok(Some(found)) => {
                self.names.insert(user, found.name.clone());
                found.name
            }
            _ => user.to_string(),
        }
    }

    /// Where the client begins: near the end of every conversation, instead of at their beginnings.
    async fn state_of(&self, tokens: &Tokens) -> Result<SavedState, RestError> {
        let mut state = SavedState::default();
        let mut after = None;
        loop {
            let part = self.rest.conversations(&tokens.access_token, after, None).await?;
            state.conversations.extend(part.conversations.iter().map(|conversation| SavedConversation {
                conversation_id: conversation.conversation_id,
                shown: conversation.last_seq.saturating_sub(SHOWN_AT_FIRST),
                target: conversation.last_seq,
            }));
            match part.next {
                Some(next) => after = Some(next),
                None => return Ok(state),
            }
        }
    }
}

async fn log_in(
    args: &ChatArgs,
    rest: &Rest,
    screen: &Screen,
    lines: &mut mpsc::Receiver<String>,
) -> Result<(String, Tokens), Problem> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => screen.ask("Your name: ", lines).await.ok_or_else(left)?,
    };
    let password = match &args.password {
        Some(password) => password.clone(),
        None => screen.ask_secret("Password: ", lines).await.ok_or_else(left)?,
    };
    match rest.log_in(&name, &password, "roost chat").await {
        Ok(tokens) => Ok((name, tokens)),
        Err(RestError::Refused { status: 401, .. }) => {
            // One answer for a wrong password and an unknown name: the server does not tell which.
            match rest.register(&name, &password, "roost chat").await {
                Ok(tokens) => {
                    screen.note(&format!("registered {name}"));
                    Ok((name, tokens))
                }
                Err(RestError::Refused { status: 409, .. }) => {
                    Err(Problem::Other(format!("{name} is registered, and the password is not right")))
                }
                Err(error) => Err(problem(error)),
            }
        }
        Err(error) => Err(problem(error)),
    }
}

/// Standard input by lines, read on a thread of its own: a terminal's read cannot be called off.
fn lines_of_standard_input() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn trust(args: &ChatArgs) -> Result<Trust, Problem> {
    let Some(path) = &args.ca_certificate else { return Ok(Trust::default()) };
    let wrong = |error: &dyn std::fmt::Display| Problem::Setting(format!("ca-certificate {}: {error}", path.display()));
    let pem = std::fs::read(path).map_err(|error| wrong(&error))?;
    Trust::with_certificates(&pem).map_err(|error| wrong(&error))
}

fn problem(error: RestError) -> Problem {
    match error {
        RestError::Untrusted(_) => {
            Problem::Other(format!("{error}; if it is right, name its authority's file with --ca-certificate"))
        }
        RestError::NoAnswer(why) => {
            Problem::Other(format!("the server does not answer ({why}); is it running? Start it with `roost`"))
        }
        other => Problem::Other(other.to_string()),
    }
}

fn left() -> Problem {
    Problem::Other("the input ended".into())
}
