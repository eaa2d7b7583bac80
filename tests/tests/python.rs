//! docs/protocol.md is enough to write a client: one in Python, on `websockets` and the standard library alone.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use roost_tests::cluster::{Cluster, Composition, Size};
use roost_tests::servers::skip;

#[tokio::test]
async fn a_client_written_from_the_document_alone() {
    let Some(python) = std::env::var_os("ROOST_TEST_PYTHON").map(PathBuf::from) else {
        return skip("python", "needs Python with the package websockets: run it by `cargo xtask test`");
    };
    let cluster = Cluster::start(Composition::Embedded, Size::ONE).await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/client.py");
    let mut command = tokio::process::Command::new(python);
    command.arg(script).arg(cluster.api_url()).arg(cluster.url(0)).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(120), command.output()).await.expect("it ends");
    let output = output.expect("Python");
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{complained}");
    assert!(said.contains("all is well"), "{said}");
}
