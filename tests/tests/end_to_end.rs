//! What users do, on both compositions: the same bodies run embedded and over Kafka, Redis and PostgreSQL.

mod bodies;

use roost_tests::cluster::{Cluster, Composition, Size};
use roost_tests::servers::available;

/// Every body on one cluster: registrations are limited, and starting costs more than talking.
async fn everything_on(composition: Composition, size: Size) {
    let mut cluster = Cluster::start(composition, size).await;
    let people = roost_tests::people::register(&cluster, 50).await;
    bodies::talk::two_exchange_ten_thousand_messages(&cluster, &people[..2]).await;
    bodies::talk::a_receiver_is_offline_and_comes_back(&cluster, &people[2..5]).await;
    bodies::talk::every_device_of_a_user_gets_everything(&cluster, &people[5..7]).await;
    bodies::talk::a_group_of_fifty(&cluster, &people).await;
    bodies::talk::rest_and_sessions_interleave(&cluster, &people[7..10]).await;
    bodies::talk::conversations_are_listed(&cluster, &people[10..13]).await;
    bodies::strangers::retries_are_suppressed(&cluster, &people[13..15]).await;
    bodies::strangers::s28_a_foreign_conversation_is_as_one_that_does_not_exist(&cluster, &people[15..18]).await;
    bodies::strangers::s30_the_servers_values_count(&cluster, &people[18..20]).await;
    bodies::strangers::s31_s32_another_body_and_another_users_id(&cluster, &people[20..22]).await;
    bodies::strangers::s33_positions_and_cursors_out_of_bounds(&cluster, &people[22..24]).await;
    bodies::strangers::plain_http(&cluster, &people[24]).await;
    bodies::talk::a_group_of_ten_thousand(&mut cluster, &people[25..28]).await;
    bodies::talk::a_stop_loses_nothing(&mut cluster, &people[28..32]).await;
}

#[tokio::test]
async fn embedded() {
    everything_on(Composition::Embedded, Size::ONE).await;
}

#[tokio::test]
async fn distributed() {
    if available("end_to_end::distributed") {
        everything_on(Composition::Distributed, Size::TWO).await;
    }
}

#[tokio::test]
async fn a_second_process_on_the_same_data_is_refused() {
    let cluster = Cluster::start(Composition::Embedded, Size::ONE).await;
    let refused = cluster.refused(&["serve", "--listen", "127.0.0.1:0"]).await;
    assert!(refused.contains("in use by another roost") && refused.contains("--data"), "{refused}");
    assert_eq!(refused.lines().count(), 1, "a clear error is one line: {refused}");
}
