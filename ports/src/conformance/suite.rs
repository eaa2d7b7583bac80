//! Turns a suite's cases into tests of an adapter's crate.

/// One test per case of the suite named first; the harness is an async function that returns `Some`, or `None` where
/// the server is not there and the cases are skipped.
///
/// ```ignore
/// async fn harness() -> Option<MyHarness> { … }
/// roost_ports::conformance_tests!(log, harness);
/// ```
///
/// The adapter's crate needs tokio with `macros` and `rt-multi-thread`.
#[macro_export]
macro_rules! conformance_tests {
    (log, $harness:path) => {
        $crate::conformance_tests!(@cases log, $harness,
            appends_stand_in_the_order_of_the_calls
            records_of_one_call_keep_their_order
            appends_of_many_tasks_are_all_there_once
            a_dropped_append_still_stands
            an_empty_append_resolves
            topics_and_partitions_are_independent
            bounds_tell_what_a_partition_holds
            read_before_gives_the_record_before
            the_largest_record_fits_and_a_larger_one_is_refused
            what_is_acknowledged_survives_reopening
            positions_are_never_given_twice
            a_consumer_starts_at_a_position
            a_consumer_is_woken_by_an_append
            nothing_arrives_before_start_or_after_stop
            starting_again_reads_again
            a_dropped_next_loses_nothing
            a_start_beyond_the_end_is_out_of_range
            a_start_before_the_beginning_is_out_of_range
            committed_is_a_hint
            groups_are_independent
            members_share_the_partitions
            closing_hands_over
            dropping_hands_over
            an_assignment_that_is_over_counts_for_nothing
            the_log_is_what_it_says
        );
    };
    (registry, $harness:path) => {
        $crate::conformance_tests!(@cases registry, $harness,
            a_registered_session_is_located
            many_users_are_located_at_once
            registering_again_is_no_error
            every_write_raises_the_counter
            a_renewal_returns_the_counter_and_the_life
            acquiring_again_is_no_error
            without_a_lease_nothing_is_written
            a_renewal_only_extends_its_own_incarnation
            a_renewal_after_another_life_begins_anew
            a_dead_gateways_entries_vanish
            release_ends_the_lease_at_once
            a_late_delete_never_removes_a_newer_registration
            unregister_removes_exactly_what_is_given
            complete_counts_for_the_present_life_only
            parallel_writes_are_all_counted
            hostile_text_is_only_text
            a_rate_allows_exactly_its_burst
            a_rate_allows_exactly_its_burst_to_parallel_callers
            a_rate_refills_one_by_one
            rates_of_other_keys_are_independent
        );
    };
    (delivery, $harness:path) => {
        $crate::conformance_tests!(@cases delivery, $harness,
            every_item_arrives_as_it_was_sent
            batches_arrive_in_the_order_of_the_calls
            batches_of_many_tasks_all_arrive_once
            a_batch_is_acknowledged_only_after_the_sink_has
            a_dropped_send_still_arrives
            the_sinks_refusal_is_the_senders
            another_incarnation_is_gone_and_touches_nobody
            an_endpoint_that_is_gone_acknowledges_nothing
            a_full_buffer_is_busy_and_recovers
            large_batches_arrive_whole
            one_stuck_endpoint_does_not_stop_another
        );
    };
    (store, $harness:path) => {
        $crate::conformance_tests!(@cases store, $harness,
            a_new_log_begins_at_zero_and_keeps_its_partitions
            logs_are_independent
            a_claim_fences_the_owner_before
            what_is_not_ours_is_dropped_and_the_rest_goes_on
            a_batch_applied_twice_at_once_counts_once
            progress_follows_what_is_applied
            poison_is_kept_and_takes_no_number
            a_dead_letter_stays_one_on_replay
            replay_tells_what_the_store_holds
            a_record_without_its_row_is_missing
            what_is_applied_survives_reopening
            numbers_follow_the_log
            a_duplicate_has_the_first_verdict
            another_body_under_the_same_id_is_refused
            a_rejection_stays_one
            ids_are_scoped_by_sender_and_conversation
            a_foreign_conversation_is_one_that_does_not_exist
            a_precondition_is_on_the_last_seq
            a_pair_has_one_direct_conversation
            creations_that_cannot_be_are_refused
            the_largest_group_can_be_made_and_listed
            lanes_number_side_by_side
            what_was_sent_comes_back_literally
            history_pages_settle_their_range
            history_limits_are_clamped
            history_pages_are_bounded_in_bytes
            heads_tell_what_changed
            heads_come_in_pages
            a_cursor_never_jumps_over_a_commit
            a_foreign_cursor_is_refused
            conversations_are_listed_in_pages
            members_are_listed_in_pages
            account_names_are_unique_without_case
            a_refresh_token_is_exchanged_once
            a_token_used_twice_revokes_its_family
            racing_exchanges_of_one_token_are_a_reuse
            a_revoked_device_is_refused
            signing_keys_are_added_once_and_pass
            gateways_are_listed_until_their_time
        );
    };
    (@cases $suite:ident, $harness:path, $($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                match $harness().await {
                    Some(harness) => $crate::conformance::$suite::$case(&harness).await,
                    None => eprintln!(concat!("skipped: ", stringify!($case), " (its server is not there)")),
                }
            }
        )*
    };
}
