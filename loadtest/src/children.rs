//! The processes of a run: started, ordered about, listened to.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

use crate::Result;
use crate::task::{Order, Word};

/// Words that wait to be heard; beyond, children wait at their pipes.
const WORDS_MAX: usize = 1_024;

/// All children of a run. Dropping them kills them.
pub struct Children {
    children: Vec<(Child, ChildStdin)>,
    words: mpsc::Receiver<(usize, Word)>,
}

impl Children {
    /// Starts so many.
    pub fn start(count: usize) -> Result<Self> {
        let (sender, words) = mpsc::channel(WORDS_MAX);
        let mut children = Vec::with_capacity(count);
        for number in 0..count {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("child").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.kill_on_drop(true).spawn()?;
            let orders = child.stdin.take().ok_or("no way to give orders")?;
            let output = child.stdout.take().ok_or("no way to listen")?;
            let errors = child.stderr.take().ok_or("no way to hear of errors")?;
            tokio::spawn(listen(number, BufReader::new(output), sender.clone()));
            tokio::spawn(pass_on(BufReader::new(errors)));
            children.push((child, orders));
        }
        Ok(Self { children, words })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.children.len()
    }

    /// Orders one child.
    pub async fn order(&mut self, child: usize, order: &Order) -> Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.children[child].1.write_all(&line).await?;
        Ok(())
    }

    /// Orders all children the same.
    pub async fn order_all(&mut self, order: &Order) -> Result<()> {
        for child in 0..self.count() {
            self.order(child, order).await?;
        }
        Ok(())
    }

    /// The next word of any child. A child that ends before its time fails the run.
    pub async fn hear(&mut self) -> Result<(usize, Word)> {
        match self.words.recv().await {
            Some((child, Word::Failed(reason))) => Err(format!("process {child}: {reason}").into()),
            Some(word) => Ok(word),
            None => Err("all processes have ended".into()),
        }
    }

    /// Tells them to go, and waits until they are gone.
    pub async fn stop(mut self) -> Result<()> {
        for (child, mut orders) in std::mem::take(&mut self.children) {
            // One that has gone by itself does not hear it.
            let _ = orders.write_all(b"\"Stop\"\n").await;
            drop(orders);
            let mut child = child;
            child.wait().await?;
        }
        Ok(())
    }
}

async fn listen(number: usize, output: BufReader<tokio::process::ChildStdout>, words: mpsc::Sender<(usize, Word)>) {
    let mut lines = output.lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let word = serde_json::from_str(&line).unwrap_or_else(|error| Word::Failed(format!("{error}: {line:.200}")));
        if words.send((number, word)).await.is_err() {
            return;
        }
    }
    // Nobody listens any more where the run is over.
    let _ = words.send((number, Word::Failed("it has ended".to_owned()))).await;
}

/// What a child prints on standard error, without fastwebsockets' own remarks about connections that break: in a storm
/// there are thousands, and they are counted.
async fn pass_on(errors: BufReader<tokio::process::ChildStderr>) {
    let mut lines = errors.lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if !line.starts_with("Error polling connection") {
            eprintln!("{line}");
        }
    }
}
