//! Two people chat by `roost chat`; the server is killed in the middle of it, and each message is there once, in order.

use std::process::Stdio;
use std::time::Duration;

use roost_tests::cluster::{Cluster, Composition, Size};
use roost_tests::people::{Account, LIVENESS, PASSWORD, register};
use roost_tests::process::{eventually, program};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// One `roost chat --plain`.
struct Chat {
    child: Child,
    keyboard: Option<ChildStdin>,
    screen: Lines<BufReader<ChildStdout>>,
    seen: Vec<String>,
}

impl Chat {
    fn start(cluster: &Cluster, who: &Account, with: &Account, more: &[&str]) -> Self {
        let mut command = Command::new(program());
        command.args(["chat", "--plain", "--server", &cluster.url(0), "--name", &who.name, "--to", &with.name]);
        command.args(more).env("ROOST_PASSWORD", PASSWORD).kill_on_drop(true);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("roost chat");
        let screen = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { keyboard: child.stdin.take(), screen, child, seen: Vec::new() }
    }

    async fn types(&mut self, line: &str) {
        let keyboard = self.keyboard.as_mut().expect("it is there");
        keyboard.write_all(format!("{line}\n").as_bytes()).await.expect("it reads");
    }

    /// Reads until so many lines were shown.
    async fn shows(&mut self, count: usize) {
        while self.seen.len() < count {
            let next = tokio::time::timeout(LIVENESS, self.screen.next_line()).await;
            let next = next.unwrap_or_else(|_| panic!("{} of {count} lines: {:#?}", self.seen.len(), self.seen));
            self.seen.push(next.expect("its output").expect("it goes on"));
        }
    }

    /// No more is typed: it ends by itself, having shown nothing more.
    async fn ends(mut self) -> Vec<String> {
        drop(self.keyboard.take());
        let status = tokio::time::timeout(LIVENESS, self.child.wait()).await.expect("it ends").expect("wait");
        assert!(status.success(), "{status}");
        while let Some(line) = self.screen.next_line().await.expect("its output") {
            self.seen.push(line);
        }
        self.seen
    }
}

#[tokio::test]
async fn two_people_chat_and_the_server_is_killed_in_the_middle() {
    let mut cluster = Cluster::start(Composition::Embedded, Size::ONE).await;
    let people = register(&cluster, 2).await;
    let mut anna = Chat::start(&cluster, &people[0], &people[1], &[]);
    let mut ben = Chat::start(&cluster, &people[1], &people[0], &["--json"]);
    let mut expected = 1;
    tokio::join!(anna.shows(expected), ben.shows(expected));
    for round in 0..3 {
        for number in 0..5 {
            anna.types(&format!("anna {round}.{number}")).await;
            ben.types(&format!("ben {round}.{number}")).await;
        }
        // Half of it is on its way when the server dies, half is typed while there is none.
        tokio::time::sleep(Duration::from_millis(5 * round)).await;
        cluster.gateways[0].kill().await;
        for number in 5..10 {
            anna.types(&format!("anna {round}.{number}")).await;
            ben.types(&format!("ben {round}.{number}")).await;
        }
        cluster.gateways[0].restart(None).await;
        expected += 20;
        tokio::join!(anna.shows(expected), ben.shows(expected));
    }
    let (annas, bens) = (anna.ends().await, ben.ends().await);
    assert_eq!(annas, bens, "both saw the same");
    assert_eq!(annas.len(), expected, "each line once: {annas:#?}");
    for (index, line) in annas.iter().enumerate() {
        assert!(line.starts_with(&format!("{} ", index + 1)), "line {index}: {line}");
    }
    for (who, word) in [(&people[0].name, "anna"), (&people[1].name, "ben")] {
        let own: Vec<&str> =
            annas.iter().filter_map(|line| line.split_once(&format!("{who}: {word} "))).map(|x| x.1).collect();
        let typed: Vec<String> = (0..30).map(|number| format!("{}.{}", number / 10, number % 10)).collect();
        assert_eq!(own, typed, "in the order in which {word} typed it");
    }
}

#[tokio::test]
async fn a_chat_without_a_server_says_what_to_do() {
    let mut command = Command::new(program());
    command.args(["chat", "--plain", "--server", "http://127.0.0.1:9", "--name", "anna", "--password", PASSWORD]);
    command.args(["--to", "ben"]).stdin(Stdio::null()).kill_on_drop(true);
    let mut said = String::new();
    eventually("it ends", LIVENESS, async || {
        let output = command.output().await.expect("roost chat");
        said = String::from_utf8_lossy(&output.stderr).into_owned();
        !output.status.success()
    })
    .await;
    assert!(said.contains("is it running?"), "{said}");
}
