//! Do all stores keep the same promises? One body per promise, over the seams alone, run once per store.
//!
//! A store joins by a line at the end that says how an empty one is opened.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "conformance/agents.rs"]
pub(crate) mod agents;
#[path = "conformance/batches.rs"]
pub(crate) mod batches;
#[path = "conformance/canaries.rs"]
pub(crate) mod canaries;
#[path = "conformance/catalog.rs"]
pub(crate) mod catalog;
#[path = "conformance/ends.rs"]
pub(crate) mod ends;
#[path = "conformance/groups.rs"]
pub(crate) mod groups;
#[path = "conformance/history.rs"]
pub(crate) mod history;
#[path = "conformance/holders.rs"]
pub(crate) mod holders;
#[path = "conformance/items.rs"]
pub(crate) mod items;
#[path = "conformance/leases.rs"]
pub(crate) mod leases;
#[path = "conformance/model.rs"]
pub(crate) mod model;
#[path = "conformance/mutations.rs"]
pub(crate) mod mutations;
#[path = "conformance/onces.rs"]
pub(crate) mod onces;
#[path = "conformance/pauses.rs"]
pub(crate) mod pauses;
#[path = "conformance/records.rs"]
pub(crate) mod records;
#[path = "conformance/retention.rs"]
pub(crate) mod retention;
#[path = "conformance/schedules.rs"]
pub(crate) mod schedules;
#[path = "conformance/settles.rs"]
pub(crate) mod settles;
#[path = "conformance/slots.rs"]
pub(crate) mod slots;
#[path = "conformance/submits.rs"]
pub(crate) mod submits;
#[path = "conformance/trees.rs"]
pub(crate) mod trees;
#[path = "conformance/usage.rs"]
pub(crate) mod usage;
#[path = "conformance/world.rs"]
pub(crate) mod world;

macro_rules! conformance {
    // Every body by its name, to be run on stores that break a promise.
    (promises: $($module:ident { $($name:ident)+ })+) => {
        pub(crate) fn promises() -> Vec<mutations::Promise> {
            vec![$($(mutations::Promise {
                name: stringify!($name),
                run: |world| Box::pin(async move { $module::$name(&world).await }),
            },)+)+]
        }
    };
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
                a_submit_without_tasks_is_told_what_its_key_stands_for
                equal_keys_in_one_call_store_one_submit
                one_key_submitted_at_once_is_stored_once
                a_submit_the_store_refuses_takes_nobody_along
                id_blocks_rise_with_time_and_never_overlap
                expired_keys_are_pruned_up_to_the_number
            }
            leases {
                a_lease_carries_what_was_submitted
                the_oldest_due_tasks_go_first
                a_level_of_priority_is_worth_a_minute_of_waiting
                a_task_with_a_priority_waits_until_it_is_due
                a_priority_outlives_every_way_back_to_the_queue
                what_is_not_due_waits_and_says_until_when
                nothing_is_leased_twice
                tokens_grow_with_every_lease
                one_tenant_of_ten_thousand_starves_nobody
                turns_go_round_with_less_room_than_tenants
                caps_hold_and_a_cap_of_zero_takes_nothing
                tenants_take_turns_within_a_lease
                a_holder_that_is_not_registered_gets_nothing
                a_lease_loads_no_more_inputs_than_fit
                a_lease_that_waits_for_a_submit_goes_with_it_or_leaves_its_tasks
            }
            settles {
                a_completed_task_has_its_one_result
                a_kept_result_names_the_task_that_it_comes_from
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
                a_task_that_does_not_start_in_time_fails
                a_task_that_does_not_end_in_time_fails_wherever_it_stands
                time_outs_end_in_rounds_and_say_when_the_next_is_over
                a_retry_by_hand_has_its_time_again
                a_retry_by_hand_takes_another_input_and_budget
                what_is_not_retried_is_not_changed
            }
            groups {
                a_groups_outcomes_come_in_the_order_of_submission
                a_window_lets_held_tasks_go_when_others_end
                a_group_that_fails_fast_is_cancelled_when_one_has_failed
                a_rescue_tells_of_groups_that_failed_fast_and_go_on
                a_retry_by_hand_opens_a_group_again
                another_tenant_has_no_group
                a_group_is_forgotten_with_its_first_task
                a_window_of_any_size_is_told_as_it_was_asked_for
                a_page_of_large_outcomes_ends_early
            }
            trees {
                a_tree_is_charged_what_its_attempts_spend
                a_tree_ends_with_its_time
                the_time_of_a_tree_is_its_roots_too
                a_tree_is_forgotten_with_its_root
                a_task_joins_a_group_of_children
                a_window_of_children_goes_before_what_joins_them
                a_cancel_follows_the_tree
                a_cancel_follows_the_trees_of_a_group_of_children
                a_large_tree_is_cancelled_in_parts
            }
            onces {
                a_unique_task_is_found_or_refuses_while_it_is_live
                a_waiting_task_takes_the_newest_input_and_time
                what_has_begun_is_not_given_another_input
                throttled_tasks_keep_their_distance
                the_distance_from_a_task_outlives_it
                one_key_submitted_at_once_makes_one_task
                a_key_of_a_kind_is_its_tenants_and_kinds
                a_refused_submit_takes_no_key_of_a_kind
                keys_of_kinds_are_forgotten_when_their_task_has_ended
                a_retry_by_hand_leaves_a_unique_task_alone
                of_a_unique_key_one_is_tried_again_by_hand
                a_retry_by_hand_asks_nothing_of_other_keys_and_rules
                tasks_of_one_submit_find_others_and_are_refused_together
                a_child_gets_what_it_asks_for_beside_what_it_inherits
                children_find_and_replace_tasks_by_keys_of_kinds
                a_child_that_is_replaced_ends_with_its_tree
            }
            pauses {
                a_paused_kind_waits_and_comes_back_in_its_order
                a_paused_tenant_gets_nothing_and_others_do
                what_waits_behind_a_pause_keeps_its_time_and_can_end
                parked_tasks_come_back_in_parts
                a_pause_is_told_and_belongs_to_its_tenant
            }
            slots {
                no_more_tasks_of_a_kind_run_than_it_says
                no_more_tasks_of_a_tenant_run_than_it_may
                every_end_of_a_lease_frees_its_slot
                a_slot_is_taken_by_who_waits_first
                keys_have_slots_of_their_own
                a_task_has_the_slots_of_its_kind_and_of_its_key
                who_waits_for_a_slot_can_end_and_takes_nobodys_place
                other_numbers_count_from_the_next_end_on
                a_pause_and_a_retry_by_hand_keep_to_the_slots
                hosts_that_lease_at_once_share_the_slots
            }
            schedules {
                a_schedule_comes_back_as_it_was_made
                schedules_are_due_in_order_and_say_when_the_next_is
                schedules_that_are_passed_over_hide_no_others
                an_occurrence_is_submitted_once
                an_occurrence_without_a_task_says_why
                a_paused_schedule_does_not_occur
                another_tenant_has_no_schedule
            }
            retention {
                ended_tasks_are_forgotten_by_how_and_when_they_ended
                forgetting_goes_on_where_it_stopped
                what_is_open_is_never_forgotten
                an_ended_task_is_dropped_with_all_that_is_kept_of_it
                tasks_of_an_open_group_stay
            }
            holders {
                holders_rise
                a_beat_prolongs_and_a_forgotten_holder_is_lost
                a_closed_holder_leaves_its_tasks_uncharged
                a_beat_tells_of_installs_and_removals
                a_lease_prolongs_its_holder_and_never_shortens
                only_expired_holders_are_rescued
                a_rescue_of_all_but_one_spares_that_one
                only_started_tasks_are_charged_a_crash
                a_process_that_is_gone_is_known_by_what_it_had_started
                a_third_crash_quarantines
                a_rescued_task_is_settled_by_its_next_holder_only
                a_lease_is_over_when_its_task_has_ended_gone_back_or_been_leased_again
            }
            records {
                another_tenant_sees_and_changes_nothing
                lists_are_newest_first_in_pages_without_gaps
                lists_filter_by_state_plugin_kind_and_parent
                lists_filter_by_root_and_group
                lists_filter_by_when_tasks_were_created_and_ended
                counts_equal_what_lists_show
                live_tasks_are_counted_per_tenant
                what_a_task_is_given_is_told_until_it_completes
                a_task_says_its_group_its_key_and_what_it_asked_for
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
                rollbacks_walk_back_to_the_first_version
                an_activation_of_what_is_not_there_changes_nothing
                the_history_has_every_swap_newest_first
                a_plugin_goes_when_its_tasks_have_ended
                components_come_back_by_digest
                components_that_nothing_names_are_forgotten
            }
            canaries {
                a_canary_stands_beside_the_current_version
                what_cannot_be_a_canary_changes_nothing
                no_more_tasks_try_a_canary_than_the_bound_however_many_come_at_once
                a_canary_that_is_worse_is_tried_no_more
                batches_try_a_canary_beside_tasks_and_are_told_apart
                a_canary_that_is_no_worse_keeps_its_part
                a_swap_ends_a_canary
                a_canary_is_its_tenants
            }
            agents {
                agents_come_back_in_the_order_of_the_ids
                an_agent_changes_only_what_is_said
                agents_are_listed_newest_first_with_their_statistics
                statuses_change_all_or_none
                users_come_back_by_id_and_in_lists
                another_tenant_has_neither_agents_nor_users
                an_id_is_given_to_one_agent_only
                a_task_names_an_agent_and_a_user_of_its_tenant
                children_inherit_agent_and_user
                lists_filter_by_agent_and_user
                an_agents_tasks_are_counted_over_their_lives
                statuses_are_an_effect
            }
            history {
                a_users_tasks_come_with_everything_around_them
                a_users_tasks_come_in_pages_without_gaps
                a_user_without_tasks_is_told_from_nobody
                a_page_of_large_results_ends_early
                another_tenant_has_no_history
                statistics_are_of_kind_and_state
                a_range_of_statistics_has_both_its_ends
                percentiles_are_nearest_ranks
            }
            items {
                random_lives_of_items_lose_and_double_none
            }
            batches {
                items_go_into_a_batch_in_order_and_within_its_limits
                a_group_is_formed_when_it_is_due_and_not_before
                nothing_is_in_two_batches
                an_ordered_group_has_one_batch_and_waits_for_its_first_item
                a_key_finds_its_add_while_it_lasts
                an_add_without_items_is_told_what_its_key_stands_for
                what_waits_is_counted_and_bounded
                an_item_names_a_processor_of_its_tenant
                ends_of_items_are_written_together
                a_stale_settlement_of_a_batch_changes_nothing
                a_batch_of_a_dead_holder_is_taken_over_whole
                kept_items_are_rows_in_pages
                dead_letters_are_tried_again_or_dropped
                a_dead_letter_of_an_ordered_key_goes_before_what_came_after_it
                what_comes_to_stand_before_waits_for_few_batches
                payloads_of_any_size_come_whole
                a_stopped_processor_gets_nothing
                items_of_a_task_come_with_its_result
                what_a_batch_asks_for_comes_with_its_end
                what_is_only_looked_at_is_not_written
                groups_with_items_are_found_in_pages
                another_tenant_has_neither_processors_nor_items
            }
            usage {
                attempts_are_counted_with_their_ends
                what_runs_spend_is_added_to_the_day
            }
            model {
                random_lives_agree_with_the_model
            }
        }
    };
}

every_promise!(sqlite);
every_promise!(memory);
every_promise!(postgres);
every_promise!(segments);
every_promise!(promises);
