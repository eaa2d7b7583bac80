//! Upgrade without a pause on one host: a starting gateway gets the listening socket of the one that runs.
//!
//! Both know the path of a unix socket, on which the running gateway listens. What they say to each other is lines of
//! text, the first of which names the version:
//!
//! ```text
//! starting: roost-takeover 1
//! running:  clients 127.0.0.1:8080    (and the socket itself, as a descriptor)
//! starting: ready
//! running:  draining
//! ```
//!
//! Until `ready` nothing changes for the running gateway: if the starting one fails or dies, it goes on. The listening
//! socket is one and the same in both, so that no connection in its queue is lost when one of them closes it.

use std::fs::Permissions;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::cli::GatewayRoleArgs;
use crate::compose::Problem;

const HELLO: &str = "roost-takeover 1";
const READY: &str = "ready";
const DRAINING: &str = "draining";
/// Before an address: the listener that comes with the line.
const CLIENTS: &str = "clients ";
const LINE_BYTES_MAX: usize = 256;
/// More than one is a mistake; there is room to see it.
const SOCKETS_MAX: usize = 4;
/// A process that runs answers at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// From the hand-over to `ready` there is only the start of the shards.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Whoever starts a program takes no part in it: no descriptor is for a child.
#[cfg(not(target_vendor = "apple"))]
const RECEIVE: RecvFlags = RecvFlags::CMSG_CLOEXEC;
#[cfg(target_vendor = "apple")]
const RECEIVE: RecvFlags = RecvFlags::empty();

/// Where gateways of this host meet.
pub struct Takeover {
    path: PathBuf,
}

impl Takeover {
    /// `None`: it was not asked for.
    pub fn wanted(args: &GatewayRoleArgs) -> Result<Option<Self>, Problem> {
        let Some(path) = &args.takeover else { return Ok(None) };
        if args.mesh.mesh_listen.port() != 0 {
            return Err(Problem::Setting(
                "mesh-listen must have port 0 with takeover: for a while the old and the new gateway run beside each \
                 other, and each needs a port of its own for deliveries"
                    .into(),
            ));
        }
        if args.mesh.mesh_advertise.is_some() {
            return Err(Problem::Setting(
                "mesh-advertise cannot be used with takeover: it is one address, and for a while there are two \
                 gateways. Give mesh-listen the address that workers reach, with port 0"
                    .into(),
            ));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match std::fs::metadata(folder) {
            Ok(metadata) if metadata.is_dir() => Ok(Some(Self { path: path.clone() })),
            Ok(_) => Err(problem(path, format_args!("{} is not a folder", folder.display()))),
            Err(error) => Err(problem(path, format_args!("the folder {}: {error}", folder.display()))),
        }
    }

    /// Gets the listener: from the gateway that runs, or a new one where none does.
    pub async fn begin(self, listen: SocketAddr) -> Result<Succession, Problem> {
        let (clients, predecessor) = match self.reach().await? {
            Some(stream) => (self.inherit(&stream, listen).await?, Some(stream)),
            None => (roost_gateway::listen(listen).map_err(|error| Problem::Other(error.to_string()))?, None),
        };
        Ok(Succession { clients, predecessor, offer: self.prepare()? })
    }

    async fn inherit(&self, stream: &UnixStream, listen: SocketAddr) -> Result<TcpListener, Problem> {
        let asked = timeout(ANSWER_LIMIT, ask(stream)).await;
        let answer = asked.unwrap_or_else(|_| Err(io::Error::other("it is silent")));
        let listener = answer.and_then(|(line, sockets)| understand(&line, sockets, listen)).map_err(|error| {
            problem(&self.path, format_args!("the gateway that runs does not hand over its listener: {error}"))
        })?;
        tracing::info!(path = %self.path.display(), "the listener was taken over");
        Ok(listener)
    }

    /// The gateway that runs, if one does. A file that was left behind is none.
    async fn reach(&self) -> Result<Option<UnixStream>, Problem> {
        let path = &self.path;
        // The link itself, not what it leads to.
        let found = match std::fs::symlink_metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(problem(path, error)),
        };
        if !found.file_type().is_socket() {
            return Err(problem(path, "there is a file that is no socket; it is left alone"));
        }
        if found.uid() != own_user() {
            return Err(problem(path, "the socket belongs to another user"));
        }
        match UnixStream::connect(path).await {
            Ok(stream) => match check_peer(&stream) {
                Ok(()) => Ok(Some(stream)),
                Err(error) => Err(problem(path, error)),
            },
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
                Ok(None)
            }
            Err(error) => Err(problem(path, error)),
        }
    }

    /// Begins to listen for the next gateway, beside the path: it is reached only once this is published.
    fn prepare(self) -> Result<Offer, Problem> {
        let mut draft = self.path.clone().into_os_string();
        draft.push(format!(".{}", std::process::id()));
        let draft = PathBuf::from(draft);
        let failed = |error: io::Error| problem(&draft, error);
        // Of a process that had the same number.
        match std::fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&draft).map_err(failed)?;
        // Others would not pass the check of the user either.
        std::fs::set_permissions(&draft, Permissions::from_mode(0o600)).map_err(failed)?;
        let found = std::fs::symlink_metadata(&draft).map_err(failed)?;
        Ok(Offer { listener, file: (found.dev(), found.ino()), at: draft, path: self.path })
    }
}

/// A gateway between the one before it and the one after it.
pub struct Succession {
    clients: TcpListener,
    predecessor: Option<UnixStream>,
    offer: Offer,
}

impl Succession {
    /// Where clients connect, for the gateway.
    pub fn listener(&self) -> Result<TcpListener, Problem> {
        self.clients.try_clone().map_err(|error| Problem::Other(format!("the listener cannot be shared: {error}")))
    }

    /// This gateway serves: the one before it drains from here on, and the next one finds this one.
    pub async fn ready(&mut self) -> Result<(), Problem> {
        if let Some(stream) = self.predecessor.take() {
            let told = async {
                say(&stream, READY, &[]).await?;
                hear(&stream).await
            };
            match timeout(ANSWER_LIMIT, told).await {
                Ok(Ok((line, _))) if line == DRAINING => tracing::info!("the gateway that ran before drains"),
                // It is gone, or hangs: the listener is ours in any case.
                other => tracing::warn!(answer = ?other, "the gateway that ran before does not say that it drains"),
            }
        }
        self.offer.publish()
    }

    async fn hand_over(&self, stream: &UnixStream) -> io::Result<()> {
        check_peer(stream)?;
        let silent = |_| io::Error::other("the new gateway is silent");
        let (hello, _) = timeout(ANSWER_LIMIT, hear(stream)).await.map_err(silent)??;
        if hello != HELLO {
            let refusal = format!("refused: this gateway understands {HELLO:?} only, not {hello:?}");
            say(stream, &refusal, &[]).await?;
            return Err(io::Error::other(refusal));
        }
        let line = format!("{CLIENTS}{}", self.clients.local_addr()?);
        say(stream, &line, &[self.clients.as_fd()]).await?;
        let (ready, _) = timeout(READY_LIMIT, hear(stream)).await.map_err(silent)??;
        if ready != READY {
            return Err(io::Error::other(format!("the new gateway says {ready:?}")));
        }
        // Ready it is, whether it still hears us or not.
        if let Err(error) = say(stream, DRAINING, &[]).await {
            tracing::warn!(%error, "the new gateway was not told that this one drains");
        }
        tracing::info!("another gateway has taken over: this one drains");
        Ok(())
    }
}

/// Waits until another gateway has the listener and is ready; for ever where none is to come.
pub async fn taken(succession: Option<&Succession>) {
    let Some(succession) = succession else { return std::future::pending().await };
    loop {
        let outcome = match succession.offer.listener.accept().await {
            Ok((stream, _)) => succession.hand_over(&stream).await,
            Err(error) => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Err(error)
            }
        };
        match outcome {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "a takeover came to nothing: this gateway goes on"),
        }
    }
}

/// The socket on which the next gateway asks.
struct Offer {
    listener: UnixListener,
    /// Which file of the file system ours is.
    file: (u64, u64),
    at: PathBuf,
    path: PathBuf,
}

impl Offer {
    /// Whoever asks at the path reaches this process from now on, in the place of the one before.
    fn publish(&mut self) -> Result<(), Problem> {
        std::fs::rename(&self.at, &self.path).map_err(|error| problem(&self.path, error))?;
        self.at.clone_from(&self.path);
        Ok(())
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        // Where it is another's by now, it stays.
        let found = std::fs::symlink_metadata(&self.at).map(|found| (found.dev(), found.ino()));
        if found.is_ok_and(|found| found == self.file) {
            let _ = std::fs::remove_file(&self.at);
        }
    }
}

fn problem(path: &Path, reason: impl std::fmt::Display) -> Problem {
    Problem::Setting(format!("takeover at {}: {reason}", path.display()))
}

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn check_peer(stream: &UnixStream) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    match peer == own_user() {
        true => Ok(()),
        false => Err(io::Error::other(format!("the process there runs as another user ({peer})"))),
    }
}

async fn ask(stream: &UnixStream) -> io::Result<(String, Vec<OwnedFd>)> {
    say(stream, HELLO, &[]).await?;
    hear(stream).await
}

fn understand(line: &str, mut sockets: Vec<OwnedFd>, listen: SocketAddr) -> io::Result<TcpListener> {
    if !line.starts_with(CLIENTS) {
        return Err(io::Error::other(line.to_owned()));
    }
    let (Some(socket), true) = (sockets.pop(), sockets.is_empty()) else {
        return Err(io::Error::other("it sent not one socket"));
    };
    if !rustix::net::sockopt::socket_acceptconn(&socket)? {
        return Err(io::Error::other("what it sent does not listen"));
    }
    // What the socket says counts, not the line.
    let listener = TcpListener::from(socket);
    let address = listener.local_addr()?;
    if listen.port() != 0 && address != listen {
        return Err(io::Error::other(format!(
            "it listens on {address}, and this one is to listen on {listen}; to change the address, stop it first"
        )));
    }
    Ok(listener)
}

async fn say(stream: &UnixStream, line: &str, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = format!("{line}\n").into_bytes();
    let mut sent = 0;
    while sent < bytes.len() {
        let rest = [IoSlice::new(&bytes[sent..])];
        let with_sockets = sent == 0 && !sockets.is_empty();
        let write = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if with_sockets && !control.push(SendAncillaryMessage::ScmRights(sockets)) {
                return Err(io::Error::other("no room for the sockets"));
            }
            Ok(rustix::net::sendmsg(stream, &rest, &mut control, SendFlags::empty())?)
        };
        sent += stream.async_io(Interest::WRITABLE, write).await?;
    }
    Ok(())
}

/// A line, and the sockets that came with it.
async fn hear(stream: &UnixStream) -> io::Result<(String, Vec<OwnedFd>)> {
    let (mut line, mut sockets) = (Vec::new(), Vec::new());
    loop {
        let mut piece = [0; LINE_BYTES_MAX];
        let read = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received = rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut piece)], &mut control, RECEIVE)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    sockets.extend(rights);
                }
            }
            Ok(received.bytes)
        };
        let count = stream.async_io(Interest::READABLE, read).await?;
        line.extend_from_slice(&piece[..count]);
        if line.ends_with(b"\n") {
            line.pop();
            let text = String::from_utf8(line).map_err(|_| io::Error::other("what it says is no text"))?;
            return Ok((text, sockets));
        }
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line.len() >= LINE_BYTES_MAX {
            return Err(io::Error::other("it does not stop talking"));
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    const ANY: &str = "127.0.0.1:0";

    fn wanted(path: &Path, more: &[&str]) -> Result<Option<Takeover>, Problem> {
        let path = path.display().to_string();
        let words = ["roost", "gateway", "--takeover", &path].into_iter().chain(more.iter().copied());
        let Command::Gateway(args) = Cli::parse_from(words).command else { panic!("a gateway") };
        Takeover::wanted(&args)
    }

    async fn begin(path: &Path, listen: &str) -> Result<Succession, String> {
        let takeover = wanted(path, &[]).expect("good settings").expect("wanted");
        takeover.begin(listen.parse().expect("an address")).await.map_err(|problem| problem.to_string())
    }

    fn address(succession: &Succession) -> String {
        succession.clients.local_addr().expect("an address").to_string()
    }

    /// What it is refused with.
    async fn refused(path: &Path, listen: &str) -> String {
        begin(path, listen).await.err().expect("refused")
    }

    #[test]
    fn settings_that_two_gateways_cannot_share_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gateway.sock");
        let refused = |path: &Path, more: &[&str]| wanted(path, more).err().expect("refused").to_string();
        assert!(refused(&path, &["--mesh-listen", "127.0.0.1:7100"]).contains("port 0"));
        assert!(refused(&path, &["--mesh-advertise", "http://a:1"]).contains("mesh-advertise"));
        let nowhere = folder.path().join("missing").join("gateway.sock");
        assert!(refused(&nowhere, &[]).contains("the folder") && refused(&nowhere, &[]).contains("missing"));
        assert!(wanted(&path, &[]).is_ok());
    }

    #[tokio::test]
    async fn the_listener_goes_over_when_the_new_one_is_ready_and_not_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gateway.sock");
        let mut first = begin(&path, ANY).await.expect("the first");
        first.ready().await.expect("nobody was there before");
        let listen = address(&first);
        let serving = tokio::spawn(async move {
            taken(Some(&first)).await;
            first
        });
        // One gets the socket and dies, one asks for another address, one speaks another version.
        drop(begin(&path, ANY).await.expect("it gets the socket"));
        assert!(refused(&path, "127.0.0.1:1").await.contains("to change the address"));
        let stranger = UnixStream::connect(&path).await.expect("it is there");
        say(&stranger, "roost-takeover 2", &[]).await.expect("it hears");
        let (answer, sockets) = hear(&stranger).await.expect("an answer");
        assert!(answer.starts_with("refused: ") && sockets.is_empty(), "{answer}");
        assert!(!serving.is_finished());

        let mut second = begin(&path, &listen).await.expect("the second");
        assert_eq!(address(&second), listen);
        assert!(!serving.is_finished(), "not before it is ready");
        second.ready().await.expect("it takes the path over");
        drop(serving.await.expect("it was told"));
        let mode = std::fs::symlink_metadata(&path).expect("the second's own").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // What connects is served by whoever has the socket now.
        let client = std::net::TcpStream::connect(&listen).expect("it listens");
        let (_, peer) = second.clients.accept().expect("the client");
        assert_eq!(client.local_addr().expect("an address"), peer);
        drop(second);
        assert!(!path.exists(), "nothing is left behind");
        assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0);
    }

    #[tokio::test]
    async fn what_lies_at_the_path_is_replaced_only_if_it_is_a_socket_of_nobody() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gateway.sock");
        // A listener that ended without a word leaves its file.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
        let link = folder.path().join("link.sock");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        assert!(refused(&link, ANY).await.contains("no socket"), "links are not followed");
        let file = folder.path().join("file.sock");
        std::fs::write(&file, "precious").expect("a file");
        assert!(refused(&file, ANY).await.contains("no socket"));
        assert_eq!(std::fs::read_to_string(&file).expect("still there"), "precious");
        let mut replaced = begin(&path, ANY).await.expect("a file left behind is no gateway");
        replaced.ready().await.expect("replaced");
        assert!(UnixStream::connect(&path).await.is_ok());
    }
}
