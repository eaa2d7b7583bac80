//! F34: where the kernel refuses io_uring, as containers have it, the program starts on the portable driver and says so.
#![cfg(target_os = "linux")]

use roost_protocol::ClientMsgId;
use roost_tests::cluster::Cluster;
use roost_tests::people::{register, rest};
use roost_tests::raw::Raw;
use roost_tests::servers::skip;

#[tokio::test]
async fn f34_the_program_starts_on_the_portable_driver_and_serves() {
    let Some(launcher) = std::env::var_os("ROOST_TEST_REFUSE_IO_URING") else {
        return skip("io_uring_refused", "needs a launcher that refuses io_uring: run it by `cargo xtask test`");
    };
    let cluster = Cluster::embedded_by(vec![launcher, "refuse-io-uring".into(), "--".into()]).await;
    let log = cluster.gateways[0].log();
    let listens = log.lines().find(|line| line.contains("the gateway listens")).expect("it is said");
    assert!(listens.contains("portable"), "{listens}");
    assert!(log.contains("io_uring is refused to this process"), "{log}");
    let people = register(&cluster, 2).await;
    let created = rest(&cluster).create_direct(people[0].token(), people[1].user()).await.expect("created");
    let mut raw = Raw::connect(&cluster.url(0), people[0].token()).await;
    assert_eq!(raw.verdict(ClientMsgId::new(), created.conversation_id, "hello").await["type"], "sent");
}
