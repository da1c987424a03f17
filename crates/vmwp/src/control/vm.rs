//! The VM as a whole: its state, and the plug.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;

use super::{Answer, ControlPoint, Failure, Running};
use crate::machine::End;

/// `GET /v1/vm`.
#[derive(Debug, Serialize)]
struct VmState {
    state: &'static str,
    processors: u32,
    memory_bytes: u64,
    uptime_seconds: f64,
    /// 100 ns units since the partition was created.
    reference_time: Option<u64>,
    resets: u64,
}

/// `GET /v1/vm/statistics`.
#[derive(Debug, Serialize)]
struct Statistics {
    unclaimed_reads: u64,
    unclaimed_writes: u64,
    serial_bytes_lost: u64,
    controllers: Vec<ControllerCounts>,
}

#[derive(Debug, Serialize)]
struct ControllerCounts {
    controller: u32,
    requests: u64,
    malformed: u64,
    luns: Vec<LunCounts>,
}

#[derive(Debug, Serialize)]
struct LunCounts {
    lun: u8,
    reads: u64,
    writes: u64,
    bytes_read: u64,
    bytes_written: u64,
    flushes: u64,
    unmaps: u64,
    errors: u64,
}

pub(super) fn routes() -> Router<Arc<ControlPoint>> {
    Router::new()
        .route("/v1/vm", get(state))
        .route("/v1/vm/statistics", get(statistics))
        .route("/v1/vm/turn-off", post(turn_off))
        .route("/v1/vm/reset", post(reset))
        .route("/v1/vm/nmi", post(nmi))
}

async fn state(State(point): State<Arc<ControlPoint>>) -> Json<VmState> {
    let partition = point
        .running()
        .as_ref()
        .and_then(|running| running.partition.upgrade());
    Json(VmState {
        state: if partition.is_some() {
            "running"
        } else {
            "starting"
        },
        processors: point.processors,
        memory_bytes: point.memory_bytes,
        uptime_seconds: point.started.elapsed().as_secs_f64(),
        reference_time: partition.map(|partition| partition.reference_time()),
        resets: point.resets.load(Ordering::Relaxed),
    })
}

async fn statistics(State(point): State<Arc<ControlPoint>>) -> Answer<Statistics> {
    let chipset = point
        .running()
        .as_ref()
        .and_then(|running| running.chipset.upgrade())
        .ok_or_else(Failure::not_running)?;
    let (unclaimed_reads, unclaimed_writes) = chipset.unclaimed();
    let serial_bytes_lost = chipset.serial_lost(0);
    let controllers = point.disks.statistics().into_iter();
    let controllers = controllers.map(|(controller, counts)| ControllerCounts {
        controller,
        requests: counts.requests,
        malformed: counts.malformed,
        luns: counts
            .luns
            .into_iter()
            .map(|(lun, counts)| LunCounts {
                lun,
                reads: counts.reads,
                writes: counts.writes,
                bytes_read: counts.bytes_read,
                bytes_written: counts.bytes_written,
                flushes: counts.flushes,
                unmaps: counts.unmaps,
                errors: counts.errors,
            })
            .collect(),
    });
    Ok(Json(Statistics {
        unclaimed_reads,
        unclaimed_writes,
        serial_bytes_lost,
        controllers: controllers.collect(),
    }))
}

async fn turn_off(State(point): State<Arc<ControlPoint>>) -> StatusCode {
    point.stop.request();
    StatusCode::ACCEPTED
}

async fn reset(State(point): State<Arc<ControlPoint>>) -> Answer<()> {
    let running = point.running().as_ref().and_then(Running::upgrade);
    running.ok_or_else(Failure::not_running)?;
    point.end(End::Reset);
    Ok(Json(()))
}

async fn nmi(State(point): State<Arc<ControlPoint>>) -> Answer<()> {
    let partition = point
        .running()
        .as_ref()
        .and_then(|running| running.partition.upgrade())
        .ok_or_else(Failure::not_running)?;
    partition
        .inject_nmi(0)
        .map_err(|_| Failure::conflict("the processor takes no NMI now"))?;
    Ok(Json(()))
}
