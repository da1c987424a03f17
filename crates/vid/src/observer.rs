//! The stack's hypercalls, shown to whoever wants to see them.

use std::sync::Arc;

/// A hypercall that the stack made for a partition, and its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObservedCall<'a> {
    /// HV_HYPERCALL_INPUT: call code, flags and rep counts (TLFS 3.7).
    pub control: u64,
    /// The input parameters as encoded, at most a page.
    pub input: &'a [u8],
    /// The output parameters as they came back, at most a page.
    pub output: &'a [u8],
    /// HV_HYPERCALL_RESULT: status and completed reps.
    pub result: u64,
}

/// Told of each hypercall after it was made, on the thread that made it. It
/// must not make hypercalls itself.
pub type HypercallObserver = Arc<dyn Fn(&ObservedCall<'_>) + Send + Sync>;

/// Tells the observer, if there is one; gives the result back.
pub(crate) fn observe(
    observer: Option<&HypercallObserver>,
    control: u64,
    input: &[u8],
    output: &[u8],
    result: u64,
) -> u64 {
    if let Some(observer) = observer {
        observer(&ObservedCall {
            control,
            input,
            output,
            result,
        });
    }
    result
}
