//! Do all stores keep the same promises? One body per promise, over the seams alone, run once per store.
//!
//! A store joins by a line at the end that says how an empty one is opened.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "conformance/catalog.rs"]
mod catalog;
#[path = "conformance/ends.rs"]
mod ends;
#[path = "conformance/holders.rs"]
mod holders;
#[path = "conformance/leases.rs"]
mod leases;
#[path = "conformance/model.rs"]
mod model;
#[path = "conformance/records.rs"]
mod records;
#[path = "conformance/settles.rs"]
mod settles;
#[path = "conformance/submits.rs"]
mod submits;
#[path = "conformance/world.rs"]
mod world;

macro_rules! conformance {
    ($store:ident: $($module:ident { $($name:ident)+ })+) => {
        mod $store {$(
            mod $module {$(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    crate::$module::$name(&crate::world::$store().await).await;
                }
            )+}
        )+}
    };
}

macro_rules! every_promise {
    ($store:ident) => {
        conformance! { $store:
            submits {
                a_task_reads_back_as_it_was_submitted
                inputs_of_every_size_come_back
                a_full_queue_takes_nothing_of_a_submit
                the_queue_fills_up_to_its_limit_within_one_call
                a_key_finds_its_submit_while_it_lasts
                a_key_belongs_to_its_tenant
                a_refused_submit_leaves_its_key_free
                equal_keys_in_one_call_store_one_submit
                one_key_submitted_at_once_is_stored_once
                a_submit_the_store_refuses_takes_nobody_along
                id_blocks_rise_with_time_and_never_overlap
                expired_keys_are_pruned_up_to_the_number
            }
            leases {
                a_lease_carries_what_was_submitted
                the_oldest_due_tasks_go_first
                what_is_not_due_waits_and_says_until_when
                nothing_is_leased_twice
                tokens_grow_with_every_lease
                one_tenant_of_ten_thousand_starves_nobody
                turns_go_round_with_less_room_than_tenants
                caps_hold_and_a_cap_of_zero_takes_nothing
                tenants_take_turns_within_a_lease
                a_holder_that_is_not_registered_gets_nothing
                a_lease_loads_no_more_inputs_than_fit
            }
            settles {
                a_completed_task_has_its_one_result
                a_failed_task_has_its_one_failure
                a_retried_task_waits_with_its_attempt_kept
                a_handed_back_task_is_as_it_was
                deadlines_are_counted_apart
                a_stale_settlement_changes_nothing
                a_task_settles_once
                a_task_settled_twice_in_one_call_settles_once
                answers_are_in_the_order_of_the_call
                every_size_of_call_settles_whole
                logs_are_kept_with_their_attempts
                children_come_with_their_parents_result
                children_of_a_stale_settlement_do_not_exist
                children_need_no_room
                a_known_child_is_not_made_again
                a_child_that_conflicts_stops_its_parent_alone
                equal_keys_of_two_parents_make_one_child
            }
            ends {
                a_pending_task_is_cancelled
                a_running_task_is_cancelled_and_settles_nothing
                an_ended_task_is_not_cancelled
                a_cancel_and_a_settle_agree_on_one_end
                a_failed_task_is_retried_with_its_history
                a_cancelled_task_is_retried
                only_failed_and_cancelled_tasks_are_retried
                a_retry_needs_room_in_the_queue
                tokens_grow_over_a_retry
                a_large_input_outlives_a_failure
            }
            holders {
                holders_rise
                a_beat_prolongs_and_a_forgotten_holder_is_lost
                a_closed_holder_leaves_its_tasks_uncharged
                only_expired_holders_are_rescued
                a_rescue_of_all_but_one_spares_that_one
                only_started_tasks_are_charged_a_crash
                a_third_crash_quarantines
                a_rescued_task_is_settled_by_its_next_holder_only
            }
            records {
                another_tenant_sees_and_changes_nothing
                lists_are_newest_first_in_pages_without_gaps
                lists_filter_by_state_plugin_kind_and_parent
                counts_equal_what_lists_show
                live_tasks_are_counted_per_tenant
                a_missing_task_is_none
                the_store_answers_a_ping
            }
            catalog {
                tenants_are_made_once
                an_installed_version_is_current
                an_equal_version_changes_nothing
                a_versions_name_stands_for_one_component_and_manifest
                an_older_version_becomes_current_again
                kinds_keep_their_rows_over_versions
                a_plugin_with_live_tasks_stays
                a_removed_plugin_comes_back_with_its_history
                components_come_back_by_digest
            }
            model {
                random_lives_agree_with_the_model
            }
        }
    };
}

every_promise!(sqlite);
