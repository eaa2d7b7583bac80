//! Which driver serves: the one that was asked for, or the one that is left where io_uring is refused (F34).

use roost_gateway::{Config, Gateway, Io};
use roost_protocol::frames::{ClientBody, Form};

use crate::client::Client;
use crate::world::{World, io};

/// Set where this process runs under a filter that refuses io_uring: then whoever leaves the choice gets the other one.
fn is_refused() -> bool {
    std::env::var_os("ROOST_TEST_IO_URING_REFUSED").is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn f34_the_driver_is_the_one_that_was_asked_for_or_the_one_that_is_left() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    match io() {
        Io::Portable => assert_eq!(gateway.io(), "portable"),
        Io::Uring => assert_eq!(gateway.io(), "io_uring"),
        Io::Auto if is_refused() => assert_eq!(gateway.io(), "portable"),
        Io::Auto => assert!(["portable", "io_uring"].contains(&gateway.io())),
    }
    let mut client = Client::connect(gateway.address(), Form::Binary).await;
    client.say(Some(2), ClientBody::Ping).await;
    assert_eq!(client.hear().await.id, Some(2));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f34_whoever_insists_on_io_uring_is_told_why_not() {
    let world = World::new();
    let config = Config { io: Io::Uring, ..World::config() };
    match Gateway::start(config, world.ports(None)).await {
        Ok(gateway) => {
            assert!(!is_refused(), "the filter does not work");
            gateway.stop().await;
        }
        Err(error) => {
            assert!(io() != Io::Uring, "this run is about io_uring: {error}");
            let told = error.to_string();
            assert!(!is_refused() || told.contains("io_uring is refused to this process"), "{told}");
        }
    }
}
