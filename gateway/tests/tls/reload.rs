//! Certificates are exchanged while sessions live, and a bad pair changes nothing.

use std::sync::Arc;

use roost_gateway::Certificates;
use roost_protocol::frames::{ClientBody, Form};
use rustls::version::TLS13;

use crate::client::Client;
use crate::pair::{Pair, dial, generate, secure};
use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_new_pair_is_for_new_connections_and_those_that_live_stay() {
    let (world, mut pair) = (World::new(), Pair::new());
    let certificates = pair.open();
    let mut config = pair.config();
    config.tls = Some(Arc::clone(&certificates));
    let gateway = world.start(config).await;
    let (address, before) = (gateway.address(), pair.trusting(&[&TLS13]));
    let stream = dial(before.clone(), address).await;
    let mut old = Client::connect_over(stream, address, Form::Json).await;
    assert!(!certificates.reload(false).expect("still good"), "nothing has changed");

    pair.renew();
    let stream = dial(before.clone(), address).await;
    drop(stream);
    assert!(certificates.reload(false).expect("a good pair"));
    let refused = secure(before, tokio::net::TcpStream::connect(address).await.unwrap()).await;
    assert!(refused.is_err(), "the new certificate is not the one that this client trusts");
    let stream = dial(pair.trusting(&[&TLS13]), address).await;
    let mut new = Client::connect_over(stream, address, Form::Json).await;
    for client in [&mut old, &mut new] {
        client.say(Some(2), ClientBody::Ping).await;
        assert_eq!(client.hear().await.id, Some(2));
    }

    // Whatever stands in the files, the old pair is used, and it is said once what is wrong.
    let good = pair.trusting(&[&TLS13]);
    let other = generate();
    let key = std::fs::read(pair.key_path()).unwrap();
    for (contents, told) in [
        (other.signing_key.serialize_pem().into_bytes(), "does not belong to the certificate"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".to_vec(), "no private key that can be used"),
        (Vec::new(), "no private key that can be used"),
    ] {
        std::fs::write(pair.key_path(), contents).unwrap();
        let error = certificates.reload(false).expect_err("a bad pair").to_string();
        assert!(error.contains(told), "{error}");
        assert!(!certificates.reload(false).expect("said already"));
        assert!(certificates.reload(true).is_err(), "somebody asks");
        drop(dial(good.clone(), address).await);
    }
    std::fs::remove_file(pair.key_path()).unwrap();
    let error = certificates.reload(false).expect_err("it is gone").to_string();
    assert!(error.contains("key.pem cannot be read"), "{error}");
    assert!(!certificates.reload(false).expect("said already"));
    std::fs::write(pair.key_path(), key).unwrap();
    assert!(!certificates.reload(false).expect("good again"), "it is the one that is used");
    drop(dial(good, address).await);
    gateway.stop().await;
}

#[test]
fn what_is_wrong_is_said_at_the_start() {
    let pair = Pair::new();
    let open = || Certificates::open(&pair.certificate_path(), &pair.key_path()).map(drop).unwrap_err().to_string();
    let certificate = std::fs::read(pair.certificate_path()).unwrap();
    std::fs::write(pair.certificate_path(), "no PEM").unwrap();
    assert!(open().contains("certificate.pem holds no certificate"), "{}", open());
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(pair.certificate_path(), broken).unwrap();
    assert!(open().contains("certificate.pem holds no certificate"), "{}", open());
    std::fs::remove_file(pair.certificate_path()).unwrap();
    assert!(open().contains("certificate.pem cannot be read"), "{}", open());
    std::fs::write(pair.certificate_path(), certificate).unwrap();
    std::fs::write(pair.key_path(), generate().signing_key.serialize_pem()).unwrap();
    assert!(open().contains("does not belong"), "{}", open());
    std::fs::write(pair.key_path(), generate().cert.pem()).unwrap();
    assert!(open().contains("key.pem holds no private key"), "{}", open());
}
