//! What a store in memory can do wrong on purpose: one promise broken by each, which some body of the conformance suite must notice.

super::listed::mutations! {
    /// A settlement needs neither the token nor the holder of the lease.
    NoFence;
    /// A settlement needs the token and may come from any holder.
    FenceByTokenOnly;
    /// A settlement needs the holder and may carry any token.
    FenceByHolderOnly;
    /// A settlement may name another tenant.
    SettlesForOthers;
    /// A task that is named twice in a call settles twice.
    SettlesTwiceInOneCall;
    /// Answers of a settle call come backwards.
    AnswersBackwards;
    /// A completed task has no result.
    ResultLost;
    /// A task does not say when it ended.
    EndTimeLost;
    /// What an attempt spent is not kept.
    MeterLost;
    /// Whose result a task has is not kept.
    MemoizedSourceLost;
    /// Which version an attempt ran is not kept.
    VersionLost;
    /// A failure keeps its code and message only.
    FailureDetailLost;
    /// An attempt that is tried again leaves no trace.
    RetriedAttemptLost;
    /// A task that is tried again is due at once.
    RetryDueAtOnce;
    /// A task that is handed back is charged an attempt.
    HandBackCharged;
    /// An attempt that met its deadline counts as any other.
    DeadlineUncounted;
    /// Logs are kept under the number that the runtime counts, which starts again with a retry by hand.
    LogNumbersRepeat;
    /// Effects are written though the settlement is stale.
    EffectsThoughStale;
    /// Effects are written apart from the end of the task, and lost.
    EffectsLost;
    /// A child's key is not looked at.
    ChildKeyIgnored;
    /// Children of whom one's key stands for another body are left out, and their parent completes.
    ChildConflictIgnored;
    /// What attempts below a root spend is charged to nothing.
    TreeUncharged;
    /// What the root spent is not charged to its tree.
    RootUncharged;
    /// A lease does not say how its tasks' trees stand.
    TreeUntold;
    /// Grandchildren do not know when their tree's time is over.
    TreeEndForgotten;
    /// A task that joins a group does not go when the group has ended.
    JoinNeverGoes;
    /// A task that joins a group does not wait for it.
    JoinGoesAtOnce;
    /// A cancel below one task takes the whole tree.
    BranchIsTree;
    /// A cancel below a task ends its children only.
    BranchOfChildren;
    /// A cancel of a branch finds another tenant's.
    BranchForOthers;
    /// A cancel of a branch does not say that some are left.
    BranchHidesRest;
    /// A tree stays when its root is forgotten.
    TreeOutlivesItsRoot;
    /// A conflict takes the keys of the children that were not made.
    ChildConflictTakesKeys;
    /// Children are not counted.
    ChildrenUncounted;
    /// A child does not inherit its parent's budget and trace.
    ChildForgetsBudget;
    /// A child starts a tree of its own.
    ChildForgetsLineage;
    /// A child is another tenant's.
    ChildForgetsTenant;
    /// A child's delay is not waited for.
    ChildDelayIgnored;
    /// A child does not inherit its parent's agent.
    ChildForgetsAgent;
    /// A child does not inherit its parent's user.
    ChildForgetsUser;
    /// Idempotency keys are not looked at.
    KeyIgnored;
    /// A key is taken for the same submit whatever the body.
    KeyTakesAnyBody;
    /// A key finds another tenant's submit.
    KeyOfAnyTenant;
    /// A key is remembered for ever.
    KeyNeverExpires;
    /// A key that is known answers with the ids of the new submit.
    KeyAnswersNewIds;
    /// A key is taken by a submit that was refused.
    KeyTakenByRefused;
    /// A page of a user's tasks loads all their results.
    UserTasksUnbounded;
    /// A prune forgets ended tasks that are kept.
    PruneKeepsNothing;
    /// What a prune forgets stays counted.
    PruneUncounted;
    /// A task that has not ended can be dropped.
    DropOfLive;
    /// A tenant can drop another's task.
    DropForOthers;
    /// What is dropped stays counted.
    DropUncounted;
    /// A prune forgets keys that have not expired.
    PruneForgetsLiveKeys;
    /// A prune forgets more keys than it was told to.
    PruneIgnoresItsNumber;
    /// The quota is not looked at.
    QuotaUnchecked;
    /// The quota is looked at before the key, though what is stored needs no room.
    QuotaBeforeKey;
    /// A tenant may have one task more than its quota.
    QuotaOneMore;
    /// A tenant may have one task less than its quota.
    QuotaOneLess;
    /// Of a submit that does not fit, the tasks that fit are stored.
    SubmitInPart;
    /// A task may name another tenant's kind.
    KindOfAnyTenant;
    /// A task may name an agent that its tenant does not have.
    AgentOfAnyTenant;
    /// A task may name a user whom its tenant does not have.
    UserOfAnyTenant;
    /// Ids start from the clock each time.
    IdsRepeat;
    /// Holders start from the clock each time.
    HoldersRepeat;
    /// A beat brings a holder back that was rescued.
    BeatRevives;
    /// A beat does not prolong.
    BeatProlongsNothing;
    /// A lease does not prolong its holder.
    LeaseProlongsNothing;
    /// A beat does not say when other holders end.
    BeatHidesOthers;
    /// A closed holder keeps its tasks.
    CloseKeepsTasks;
    /// A lease does not grow the token.
    LeaseWithoutToken;
    /// A lease does not carry the budget and the trace of the submit.
    LeaseForgetsBudget;
    /// Tasks are leased before they are due.
    LeaseOfNotDue;
    /// A task with a priority stands where one without stands.
    PriorityIgnored;
    /// A task with a priority is leased before it is due.
    PriorityBeforeDue;
    /// A task with a priority that had to wait stays where it stood.
    DueWithoutPlace;
    /// A group does not count what became of its tasks.
    GroupUncounted;
    /// A group does not count that one of its tasks is tried again by hand.
    GroupRetryUncounted;
    /// All tasks of a group stand in the queue at once, whatever its window.
    WindowIgnored;
    /// A window lets one task more go than it has room for.
    WindowOneMore;
    /// A window lets no held task go.
    WindowStands;
    /// A group is cancelled for a failure that it does not have, or does not mind.
    FailFastOfAnyGroup;
    /// Outcomes of a group come backwards.
    OutcomesBackwards;
    /// A tenant can see and cancel another's group.
    GroupForOthers;
    /// A retry by hand does not give a task its time-outs again.
    RetryForgetsTimeOuts;
    /// A task that has started is ended because it did not start in time.
    StartedTimesOutQueued;
    /// A task is ended a millisecond before its time is over.
    TimeOutsEarly;
    /// A time-out does not grow the token.
    TimeOutWithoutToken;
    /// A time-out does not say which limit was met.
    TimeOutNamesNothing;
    /// A round of ending does not say of which kinds its tasks were.
    TimedOutKindsLost;
    /// A rescue does not say of which kinds the quarantined tasks were.
    QuarantinedKindsLost;
    /// A round of ending does not say when the next time-out is over.
    NextTimeOutForgotten;
    /// A retry by hand loses the priority.
    RetryForgetsPriority;
    /// A child does not inherit its parent's priority.
    ChildForgetsPriority;
    /// Running tasks are leased again.
    LeaseTwice;
    /// The newest due tasks go first.
    LeaseNewestFirst;
    /// A holder that is not registered gets leases.
    LeaseToAnyone;
    /// The first tenant is served first, and the others with what it leaves.
    NoFairness;
    /// Sharing always starts with the first tenant.
    NoRotation;
    /// Tasks of a lease come tenant by tenant.
    NoTurns;
    /// Caps are not looked at.
    CapsIgnored;
    /// A lease takes one task more than it has room for.
    RoomOneMore;
    /// A lease does not say when the next task comes due.
    NextDueForgotten;
    /// A lease loads every input, however large they are together.
    InputsUnbounded;
    /// Holders whose lease lasts are rescued too.
    RescueOfTheLiving;
    /// The holder of what had started waits for the end of its lease, though its process is gone.
    RescueWaitsForTheGone;
    /// A rescue gives nothing back.
    RescueNothing;
    /// A rescue of all but one holder takes that one along.
    RescueSparesNobody;
    /// A rescue charges tasks a crash that had not started.
    CrashChargedToUnstarted;
    /// A rescue charges by task, whichever lease had started.
    CrashChargedByTask;
    /// A rescue charges no task a crash.
    CrashUncharged;
    /// A third crash gives the task back as the first two did.
    ThirdCrashReturns;
    /// A rescue does not forget the dead holders.
    RescueForgetsNobody;
    /// A rescue does not tell which groups have failed and go on.
    RescueForgetsGroups;
    /// A cancel does not grow the token.
    CancelWithoutToken;
    /// A cancel does not change the counts.
    CancelUncounted;
    /// A cancel takes tasks that have ended.
    CancelOfEnded;
    /// A tenant can cancel another's task.
    CancelForOthers;
    /// A retry by hand loses the attempts before it.
    RetryLosesHistory;
    /// A retry by hand loses the attempt that ended the task.
    RetryLosesLastAttempt;
    /// Numbers of attempts start again with a retry by hand.
    RetryRestartsNumbers;
    /// A retry by hand goes on counting attempts.
    RetryKeepsAttempts;
    /// A retry by hand goes on counting crashes.
    RetryKeepsCrashes;
    /// A retry by hand goes on counting deadlines.
    RetryKeepsDeadlines;
    /// A retry by hand waits for the time that the task last waited for.
    RetryKeepsDueTime;
    /// Tokens start again with a retry by hand.
    RetryRestartsTokens;
    /// A retry by hand does not look at the quota.
    RetryUnchecked;
    /// A retry by hand does not change the counts.
    RetryUncounted;
    /// A retry by hand takes completed tasks.
    RetryOfCompleted;
    /// A tenant can retry another's task.
    RetryForOthers;
    /// A task that fails loses its input.
    InputLostOnFailure;
    /// A settlement does not change the counts.
    SettleUncounted;
    /// A settlement does not add to the usage.
    SettleUnmetered;
    /// What runs spend is not kept.
    SpentLost;
    /// What is spent is added to one day for ever.
    SpentOnOneDay;
    /// A tenant can read what another spent.
    SpentForOthers;
    /// A tenant can read another's task.
    ReadForOthers;
    /// A tenant can read another's logs.
    LogsForOthers;
    /// A tenant's lists show another's tasks.
    ListForOthers;
    /// Lists are oldest first.
    ListOldestFirst;
    /// A page starts with the task that the one before ended with.
    PageRepeatsItsEdge;
    /// A page leaves out the first task behind the one before.
    PageSkipsItsEdge;
    /// A page has one task more than its limit.
    PageOneMore;
    #[doc = "Lists do not filter by state."] ListOfAnyState;
    #[doc = "Lists do not filter by plugin."] ListOfAnyPlugin;
    #[doc = "Lists do not filter by kind."] ListOfAnyKind;
    #[doc = "Lists do not filter by parent."] ListOfAnyParent;
    #[doc = "Lists do not filter by agent."] ListOfAnyAgent;
    #[doc = "Lists do not filter by user."] ListOfAnyUser;
    #[doc = "Lists do not filter by root."] ListOfAnyRoot;
    #[doc = "Lists do not filter by group."] ListOfAnyGroup;
    #[doc = "Lists do not filter by time."] ListOfAnyTime;
    /// A name stands for whatever was installed under it last.
    VersionReplaced;
    /// A version that is current already is installed anew.
    UnchangedInstalledAnew;
    /// A version brings rows of its own for the kinds that were there.
    KindsMadeAnew;
    /// A plugin goes though it has live tasks.
    RemoveOfBusy;
    /// A plugin that was removed is still listed.
    RemovedStillListed;
    /// Tasks of a plugin that was removed cannot be read.
    RemovedHidesTasks;
    /// A tenant can swap and see another's plugin.
    ActivateForOthers;
    /// An activation does not move the number that a beat tells.
    ActivateTellsNobody;
    /// A rollback of a rollback comes back to what the first one left.
    RollbackSwings;
    /// A rollback goes back to what ran before a removal.
    RollbackOverRemoval;
    /// A swap leaves no trace in the history.
    SwapUnnoted;
    /// A page of the history starts with the generation that the one before ended with.
    GenerationPageRepeatsItsEdge;
    /// A plugin that goes when its tasks have ended does not say so.
    DrainingUnmarked;
    /// A plugin that is installed again goes all the same when its tasks have ended.
    InstallKeepsDraining;
    /// A canary of a plugin that was swapped goes on.
    CanaryOutlivesSwap;
    /// A canary begins with the counts of the one before.
    CanaryKeepsItsCounts;
    /// A canary that begins does not move the number that a beat tells.
    CanaryTellsNobody;
    /// A verdict on a canary does not move the number that a beat tells.
    VerdictTellsNobody;
    /// Tasks that try a canary are not counted.
    CanaryTasksUncounted;
    /// What the current version's attempts came to is not kept.
    CanaryForgetsCurrent;
    /// A batch that tried a canary is counted as a task.
    CanaryBatchesAsTasks;
    /// A canary can be tried and judged by another tenant.
    CanaryOfOthers;
    /// A tenant that exists is made again.
    TenantsMadeAnew;
    /// An install does not move the number that a beat tells.
    CatalogNumberStands;
    /// A component is kept as it was put last, though its digest is the first one's.
    ComponentLost;
    /// Keys of kinds are not looked at.
    OnceIgnored;
    /// A key of a kind finds another tenant's task.
    OnceOfAnyTenant;
    /// A key of a kind finds a task of another kind.
    OnceOfAnyKind;
    /// A key of a kind stands for a task that has ended.
    OnceForEver;
    /// A task whose attempt has begun is given another input.
    OnceReplacesBegun;
    /// A task that waits keeps its first input.
    ReplaceKeepsInput;
    /// A task that waits keeps its first due time.
    ReplaceKeepsTime;
    /// A prune forgets keys of kinds whose task is live.
    PruneForgetsLiveOnces;
    /// A child that is given another input may take longer than its tree.
    ReplaceOutlivesTree;
    /// An idempotency key of tasks of which some were found answers numbers that follow each other.
    KeyForgetsWhatWasFound;
    /// Keys of kinds that children name are not looked at.
    ChildOnceIgnored;
    /// A child loses the key under which few run at once.
    ChildForgetsSlotKey;
    /// A child is as urgent as its parent though it asks for something else.
    ChildForgetsOwnPriority;
    /// A child has its parent's limits though it asks for others.
    ChildForgetsOwnBudget;
    /// A child is due at once though it names a time.
    ChildRunAtIgnored;
    /// A retry by hand runs with the input that the task had.
    AmendedInputLost;
    /// A retry by hand runs with the budget that the task had.
    AmendedBudgetLost;
    /// A retry by hand that changes a part of a budget forgets the rest.
    AmendedBudgetForgetsTheRest;
    /// What is paused is leased all the same.
    PauseIgnored;
    /// A tenant can pause another's kind.
    PausesForOthers;
    /// A pause does not move the number that a beat tells.
    PauseTellsNobody;
    /// Tasks of a kind that was paused never come back.
    ParkedForEver;
    /// Tasks of a kind that was paused do not know when they came due.
    ParkForgetsDueTime;
    /// All parked tasks come back at once.
    UnparkIgnoresItsNumber;
    /// Any number of tasks of a kind or a key is leased.
    SlotsIgnored;
    /// One task more than there are slots is leased.
    SlotOneMore;
    #[doc = "Tenants may have any number of slots."] TenantSlotsIgnored;
    /// A slot is never free again.
    SlotNeverFree;
    /// Nobody is woken when a slot is free.
    SlotWakesNobody;
    /// Who waited last for a slot has it first.
    SlotToTheLast;
    /// A slot is not kept for the task that is woken for it.
    SlotNotKept;
    /// Keys of all tenants have the same slots.
    SlotOfAnyTenant;
    /// Keys of all kinds have the same slots.
    SlotOfAnyKind;
    /// Keys have no slots of their own.
    SlotKeyIgnored;
    /// A retry by hand loses the key of the slot.
    RetryForgetsSlotKey;
    /// An occurrence that somebody has submitted is submitted again.
    OccurrenceTwice;
    /// An occurrence is written without its task.
    OccurrenceLost;
    /// A schedule does not say what became of its last occurrence.
    OccurrenceForgotten;
    /// A schedule takes the place of one of the same name.
    ScheduleReplaced;
    /// A tenant may have any number of schedules.
    SchedulesUnbounded;
    /// A paused schedule occurs.
    PausedScheduleOccurs;
    /// A schedule that is removed occurs.
    RemovedScheduleOccurs;
    /// A tenant sees and changes another's schedules.
    ScheduleForOthers;
    /// A page of schedules starts with the one that the page before ended with.
    SchedulesRepeatTheirEdge;
    /// Nobody is told when the next schedule occurs.
    NextScheduleForgotten;
    /// Agents are loaded in the order of their ids.
    AgentsInIdOrder;
    /// Agents that are missing are left out.
    MissingAgentsLeftOut;
    /// A tenant can load another's agents.
    AgentsForOthers;
    /// A tenant can load another's users.
    UsersForOthers;
    /// Agents without tasks are left out of lists.
    IdleAgentsLeftOut;
    /// Agents are listed oldest first.
    AgentsOldestFirst;
    /// Lists of agents do not filter by kind.
    AgentsOfAnyKind;
    /// Lists of agents do not filter by status.
    AgentsOfAnyStatus;
    /// A page of agents starts with the one that the page before ended with.
    AgentPageRepeatsItsEdge;
    /// A page of users starts with the one that the page before ended with.
    UserPageRepeatsItsEdge;
    /// An agent's update takes no time.
    UpdateKeepsTime;
    /// Statuses are applied though some agents are unknown.
    StatusesThoughUnknown;
    /// A tenant can give another's agents statuses.
    StatusesForOthers;
    /// Of an agent that is named twice the first status counts.
    FirstStatusCounts;
    /// Statuses that a settlement asks for are given though it is stale.
    StatusesThoughStale;
    /// Statuses that a settlement asks for are given though its task failed.
    StatusesThoughFailed;
    /// An agent's tasks are not counted when they are submitted.
    AgentTotalUncounted;
    /// An agent's tasks are not counted when they end.
    AgentEndUncounted;
    /// The running time of an agent's tasks is not counted.
    AgentTimeUncounted;
    /// A retry by hand does not take an agent's end back.
    AgentEndStaysAfterRetry;
    /// An agent's children are not counted.
    AgentChildrenUncounted;
    /// A user's tasks are listed oldest first.
    UserTasksOldestFirst;
    /// A tenant can list another's user's tasks.
    UserTasksForOthers;
    /// Nobody's tasks are an empty page.
    UserTasksOfNobodyEmpty;
    /// A user's tasks come without their results.
    UserTasksWithoutResults;
    /// A user's tasks come without their agents.
    UserTasksWithoutAgents;
    /// A page of a user's tasks starts with the one that the page before ended with.
    UserTasksPageRepeatsItsEdge;
    /// Statistics leave out what was created at the start of the range.
    RangeStartExcluded;
    /// Statistics leave out what was created at the end of the range.
    RangeEndExcluded;
    /// Percentiles are one rank too high.
    PercentileOneUp;
    /// Percentiles are one rank too low.
    PercentileOneDown;
    /// An average is rounded up.
    AverageRoundedUp;
    /// Statistics leave out tasks that have not ended.
    StatisticsWithoutLive;
    /// Statistics count another tenant's tasks.
    StatisticsForOthers;
    /// An add's key is not looked at.
    AddKeyIgnored;
    /// A tenant may have any number of items waiting.
    AddUnbounded;
    /// Of an add that does not fit, one item is stored.
    AddInPart;
    /// Items are not counted.
    ItemsUncounted;
    /// An item may name another tenant's processor.
    ItemsOfAnyProcessor;
    /// A holder that is not registered gets batches.
    FormForAnyone;
    /// A stopped processor gets batches.
    FormThoughStopped;
    /// An ordered group has two batches in flight.
    OrderedTwice;
    /// An ordered group goes on behind an item that waits.
    OrderedSkipsWaiting;
    /// What a group has left is not told.
    LeftForgotten;
    /// A batch has an item more than it may.
    BatchOneMore;
    /// A batch has any number of bytes.
    BatchBytesUnbounded;
    /// A group is formed as soon as it has an item.
    FormedTooEarly;
    /// A group is not formed by its age.
    AgeIgnored;
    /// Items that are tried again are handed over before they are due.
    FormedBeforeDue;
    /// An item is in two batches.
    ItemInTwoBatches;
    /// Items of other keys are in a batch.
    KeysMixed;
    /// The newest items go first.
    NewestItemsFirst;
    /// An item does not say how often it was handed over.
    ItemForgetsAttempts;
    /// Batches of living holders are taken over too.
    TakeOverOfTheLiving;
    /// A batch that is taken over keeps its token.
    TakeOverWithoutToken;
    /// A batch is not charged a crash.
    BatchCrashUncharged;
    /// A batch's settlement needs no token.
    BatchFenceByHolderOnly;
    /// A batch's settlement may come from any holder.
    BatchFenceByTokenOnly;
    /// A batch's settlement may name another tenant.
    SettlesBatchesForOthers;
    /// Items that a batch's end does not name are gone.
    UnnamedItemLost;
    /// An item that is done stays.
    DoneItemStays;
    /// An item that is tried again is gone.
    RetriedItemLost;
    /// An item that is tried again is due at once.
    ItemDueAtOnce;
    /// A time that an item was handed over is not counted.
    ItemAttemptUncounted;
    /// Items that are done are not kept as rows.
    RowsNotKept;
    /// A dead letter is not kept.
    DeadLetterLost;
    /// A dead letter keeps its code and message only.
    DeadLetterDetailLost;
    /// A dead letter that is retried or dropped stays.
    DeadLetterStays;
    /// An item that was a dead letter goes on counting.
    RevivedKeepsAttempts;
    /// An item that was a dead letter is not counted.
    RevivedUncounted;
    /// What a batch asked for is lost.
    BatchEffectsLost;
    /// What the database would refuse of a batch looks good to it.
    RefusalUnseen;
    /// What a batch asked for is written though its settlement is stale.
    BatchEffectsThoughStale;
    /// Items that a task asked for are lost.
    TaskItemsLost;
    /// Items that a task asked for are written though it did not complete.
    TaskItemsThoughStale;
    /// A page of groups starts with the one that the page before ended with.
    GroupsRepeatTheirEdge;
    /// A processor that was stopped goes on.
    StopForgotten;
    /// A tenant can stop another's processor.
    StopsForOthers;
    /// A tenant sees another's processors.
    ProcessorsForOthers;
    /// A tenant sees another's items.
    ItemsForOthers;
    /// A tenant sees another's rows.
    RowsForOthers;
    /// A tenant sees and changes another's dead letters.
    DeadForOthers;
}
