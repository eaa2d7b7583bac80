//! TLS over the real program's port: REST, sessions and the terminal client, and another certificate under them.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use http::Method;
use rcgen::CertifiedKey;
use roost_client::{Client, Config, Credentials, Event, Events, Outcome, Rest, RestError, Trust};
use roost_protocol::Form;
use roost_protocol::frames::HistoryRange;
use roost_tests::people::{LIVENESS, PASSWORD};
use roost_tests::process::{Process, eventually, free_port, program, signal};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

struct Place {
    folder: TempDir,
    server: Process,
}

impl Place {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        renew(folder.path());
        let (certificate, key) = paths(folder.path());
        let data = folder.path().join("data");
        let listen = format!("127.0.0.1:{}", free_port());
        let [certificate, key, data] = [&certificate, &key, &data].map(|path| path.display().to_string());
        let arguments =
            ["serve", "--listen", &listen, "--data", &data, "--tls-certificate", &certificate, "--tls-key", &key];
        let server = Process::start("serve-tls", &arguments).await;
        assert!(server.address().starts_with("https://"), "{}", server.address());
        Self { folder, server }
    }

    fn certificate(&self) -> PathBuf {
        paths(self.folder.path()).0
    }

    /// Trusts what stands in the file now.
    fn trust(&self) -> Trust {
        Trust::with_certificates(&std::fs::read(self.certificate()).expect("the file")).expect("a certificate")
    }

    fn rest(&self, trust: &Trust) -> Rest {
        Rest::with_trust(self.server.address(), trust).expect("an address")
    }

    async fn chat(&self, name: &str, with: &str, more: &[&str]) -> std::process::Output {
        let mut command = Command::new(program());
        command.args(["chat", "--plain", "--server", self.server.address(), "--name", name, "--to", with]);
        command.args(more).env("ROOST_PASSWORD", PASSWORD).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("roost chat");
        child.stdin.take().expect("piped").write_all(b"typed\n").await.expect("it reads");
        tokio::time::timeout(LIVENESS, child.wait_with_output()).await.expect("it ends").expect("its output")
    }
}

fn paths(folder: &Path) -> (PathBuf, PathBuf) {
    (folder.join("certificate.pem"), folder.join("key.pem"))
}

fn renew(folder: &Path) {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let (certificate, key) = paths(folder);
    std::fs::write(certificate, cert.pem()).expect("written");
    std::fs::write(key, signing_key.serialize_pem()).expect("written");
}

async fn healthz(rest: &Rest) -> Result<u16, RestError> {
    rest.request(Method::GET, "/healthz", None, None).await.map(|(status, _)| status.as_u16())
}

/// The next message's text; a connection that breaks meanwhile is a failure.
async fn text(events: &mut Events) -> String {
    let next = async {
        loop {
            match events.next().await.expect("the client runs") {
                Event::Message(message) if message.event.is_none() => {
                    return String::from_utf8(message.body.to_vec()).expect("text");
                }
                Event::Disconnected { reason, .. } => panic!("disconnected: {reason}"),
                _ => {}
            }
        }
    };
    tokio::time::timeout(LIVENESS, next).await.expect("it comes")
}

#[tokio::test]
async fn everything_is_on_one_port_and_lives_through_another_certificate() {
    let place = Place::start().await;
    let trust = place.trust();
    let rest = place.rest(&trust);
    assert_eq!(healthz(&rest).await.expect("it answers"), 200);
    let stranger = healthz(&Rest::new(place.server.address()).expect("an address")).await;
    assert!(matches!(stranger, Err(RestError::Untrusted(_))), "{stranger:?}");
    let plain = place.server.address().replace("https:", "http:");
    let plain = healthz(&Rest::new(&plain).expect("an address")).await;
    assert!(matches!(plain, Err(RestError::NoAnswer(_))), "{plain:?}");

    let anna = rest.register("anna", PASSWORD, "test").await.expect("registered");
    let ben = rest.register("ben", PASSWORD, "test").await.expect("registered");
    let room = rest.create_direct(&anna.access_token, ben.user_id).await.expect("created").conversation_id;
    let config = |tokens, form| Config {
        trust: trust.clone(),
        form,
        ..Config::new(place.server.address(), Credentials::Tokens(tokens))
    };
    let (annas, _events) = Client::connect(config(anna, Form::Binary)).await.expect("it starts");
    let (bens, mut heard) = Client::connect(config(ben, Form::Json)).await.expect("it starts");
    annas.connected().await.expect("it runs");
    bens.connected().await.expect("it runs");
    let say = async |words: String| {
        let outcome = annas.send_text(room, &words).await.expect("it runs").await.expect("a verdict");
        assert!(matches!(outcome, Outcome::Sent { .. }), "{outcome:?}");
    };
    for words in ["short".to_owned(), "long ".repeat(10_000)] {
        say(words.clone()).await;
        assert!(text(&mut heard).await == words);
    }

    // Another certificate, by itself within seconds; those who are connected notice nothing.
    let before = std::fs::read(place.certificate()).expect("the file");
    renew(place.folder.path());
    let new = place.rest(&place.trust());
    eventually("the new certificate is shown", LIVENESS, async || healthz(&new).await.is_ok()).await;
    // Afresh: who comes back to a session of TLS is shown no certificate.
    let old = healthz(&place.rest(&Trust::with_certificates(&before).expect("it was good"))).await;
    assert!(matches!(old, Err(RestError::Untrusted(_))), "{old:?}");
    say("after".to_owned()).await;
    assert_eq!(text(&mut heard).await, "after");

    // One that is no certificate changes nothing; a good one is taken at once where SIGHUP says so.
    let good = std::fs::read(place.certificate()).expect("the file");
    std::fs::write(place.certificate(), "no certificate").expect("written");
    signal(place.server.id(), "HUP");
    let log = || place.server.log();
    eventually("it is said", LIVENESS, async || log().contains("the TLS certificate stays what it was")).await;
    assert_eq!(healthz(&place.rest(&Trust::with_certificates(&good).expect("good"))).await.expect("it answers"), 200);
    renew(place.folder.path());
    signal(place.server.id(), "HUP");
    let newest = place.rest(&place.trust());
    eventually("the newest is shown", LIVENESS, async || healthz(&newest).await.is_ok()).await;
    say("at last".to_owned()).await;
    assert_eq!(text(&mut heard).await, "at last");
}

#[tokio::test]
async fn the_terminal_client_trusts_whom_it_is_told_to() {
    let place = Place::start().await;
    let rest = place.rest(&place.trust());
    let ben = rest.register("ben", PASSWORD, "test").await.expect("registered");
    let refused = place.chat("anna", "ben", &[]).await;
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && told.contains("--ca-certificate"), "{told}");
    let certificate = place.certificate().display().to_string();
    let chatted = place.chat("anna", "ben", &["--ca-certificate", &certificate]).await;
    assert!(chatted.status.success(), "{}", String::from_utf8_lossy(&chatted.stderr));
    let anna = rest.log_in("anna", PASSWORD, "test").await.expect("it was registered by the chat");
    let room = rest.create_direct(&anna.access_token, ben.user_id).await.expect("it exists").conversation_id;
    let page = rest.history(&anna.access_token, room, HistoryRange::After(0), None).await.expect("its history");
    assert!(page.messages.iter().any(|message| message.body == b"typed".as_slice()), "{page:?}");
}
