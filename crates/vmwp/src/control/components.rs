//! Integration components: the guest's heart, its end, its clock, its file
//! systems, and files for it. Pairs and addresses are in [`super::kvp`].

use std::fs::File;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use vsp::ic::{
    ApplicationState, CopyError, CopyFlags, Heartbeat, HeartbeatState, ShutdownKind, Vss,
};

use super::{Answer, Body, ControlPoint, Failure, OptionalBody, blocking, or_default};

/// How long a guest may take for an answer, unless the request says.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time that a request may ask for, in seconds.
const MAX_TIMEOUT: f64 = 3600.0;
/// How long a guest stays frozen at most, unless the request says.
const HOLD: Duration = Duration::from_secs(60);

/// A request's own time, in seconds.
fn timeout(seconds: Option<f64>) -> Result<Duration, Failure> {
    let Some(seconds) = seconds else {
        return Ok(TIMEOUT);
    };
    Some(seconds)
        .filter(|seconds| (0.0..=MAX_TIMEOUT).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| Failure::argument("a time must be between 0 and 3600 seconds"))
}

/// `?timeout_seconds=N` behind the resources whose requests have no body for it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wait {
    timeout_seconds: Option<f64>,
}

/// The part of a request that is a [`Wait`].
pub(super) type Waiting = Result<Query<Wait>, QueryRejection>;

/// The time of a request that gives it as a [`Wait`].
pub(super) fn patience(query: Waiting) -> Result<Duration, Failure> {
    let Query(Wait { timeout_seconds }) = query?;
    timeout(timeout_seconds)
}

/// `GET /v1/vm/components`: which the guest has opened.
#[derive(Debug, Serialize)]
struct Connected {
    heartbeat: bool,
    shutdown: bool,
    time: bool,
    kvp: bool,
    backup: bool,
    files: bool,
}

/// `GET /v1/vm/heartbeat`.
#[derive(Debug, Serialize)]
struct HeartbeatView {
    state: &'static str,
    applications: &'static str,
    sequence: u64,
    answered: u64,
    missed: u64,
    seconds_since_answer: Option<f64>,
}

impl From<&Heartbeat> for HeartbeatView {
    fn from(heartbeat: &Heartbeat) -> Self {
        let status = heartbeat.status();
        Self {
            state: match status.state {
                HeartbeatState::NotConnected => "not connected",
                HeartbeatState::Starting => "starting",
                HeartbeatState::Ok => "ok",
                HeartbeatState::Lost => "lost",
                HeartbeatState::Failed => "failed",
            },
            applications: match status.applications {
                ApplicationState::Unknown => "unknown",
                ApplicationState::Healthy => "healthy",
                ApplicationState::Critical => "critical",
                ApplicationState::Stopped => "stopped",
            },
            sequence: status.sequence,
            answered: status.answered,
            missed: status.missed,
            seconds_since_answer: status.since_answer.map(|since| since.as_secs_f64()),
        }
    }
}

/// `POST /v1/vm/shutdown`, `reboot`, `hibernate`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Ending {
    force: bool,
    timeout_seconds: Option<f64>,
}

/// `PUT /v1/vm/time`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Clock {
    unix_seconds: Option<f64>,
    timeout_seconds: Option<f64>,
}

/// `GET /v1/vm/backup`.
#[derive(Debug, Serialize)]
struct Backup {
    frozen: bool,
    auto_recovery: bool,
}

/// `POST /v1/vm/freeze`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Freeze {
    hold_seconds: Option<f64>,
    timeout_seconds: Option<f64>,
}

/// The answer of `POST /v1/vm/thaw`.
#[derive(Debug, Serialize)]
struct Thawed {
    /// The guest was frozen all the time since it was asked to be.
    intact: bool,
}

/// `POST /v1/vm/files`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Copy {
    source: PathBuf,
    destination: String,
    #[serde(default)]
    overwrite: bool,
    #[serde(default)]
    create_path: bool,
    timeout_seconds: Option<f64>,
}

/// The answer of `POST /v1/vm/files`.
#[derive(Debug, Serialize)]
struct Copied {
    bytes: u64,
}

type Point = State<Arc<ControlPoint>>;

pub(super) fn routes() -> Router<Arc<ControlPoint>> {
    Router::new()
        .route("/v1/vm/components", get(connected))
        .route("/v1/vm/heartbeat", get(heartbeat))
        .route("/v1/vm/shutdown", post(shutdown))
        .route("/v1/vm/reboot", post(reboot))
        .route("/v1/vm/hibernate", post(hibernate))
        .route("/v1/vm/time", put(set_time))
        .route("/v1/vm/backup", get(backup))
        .route("/v1/vm/freeze", post(freeze))
        .route("/v1/vm/thaw", post(thaw))
        .route("/v1/vm/files", post(copy_file))
}

async fn connected(State(point): Point) -> Answer<Connected> {
    let components = point.components()?;
    Ok(Json(Connected {
        heartbeat: components.heartbeat.status().state != HeartbeatState::NotConnected,
        shutdown: components.shutdown.is_connected(),
        time: components.time.is_connected(),
        kvp: components.kvp.is_connected(),
        backup: components.vss.is_connected(),
        files: components.file_copy.is_connected(),
    }))
}

async fn heartbeat(State(point): Point) -> Answer<HeartbeatView> {
    Ok(Json((&point.components()?.heartbeat).into()))
}

async fn end(point: &ControlPoint, kind: ShutdownKind, body: OptionalBody<Ending>) -> Answer<()> {
    let ending = or_default(body)?;
    let shutdown = point.components()?.shutdown;
    let timeout = timeout(ending.timeout_seconds)?;
    blocking(move || shutdown.request(kind, ending.force, timeout)).await?;
    Ok(Json(()))
}

async fn shutdown(State(point): Point, body: OptionalBody<Ending>) -> Answer<()> {
    end(&point, ShutdownKind::PowerOff, body).await
}

async fn reboot(State(point): Point, body: OptionalBody<Ending>) -> Answer<()> {
    end(&point, ShutdownKind::Reboot, body).await
}

async fn hibernate(State(point): Point, body: OptionalBody<Ending>) -> Answer<()> {
    end(&point, ShutdownKind::Hibernate, body).await
}

async fn set_time(State(point): Point, body: OptionalBody<Clock>) -> Answer<()> {
    let clock = or_default(body)?;
    let time = clock.unix_seconds.map(wall_time).transpose()?;
    let component = point.components()?.time;
    let timeout = timeout(clock.timeout_seconds)?;
    blocking(move || component.set(time, timeout)).await?;
    Ok(Json(()))
}

fn wall_time(unix_seconds: f64) -> Result<SystemTime, Failure> {
    Duration::try_from_secs_f64(unix_seconds)
        .ok()
        .and_then(|since| UNIX_EPOCH.checked_add(since))
        .ok_or_else(|| Failure::argument("unix_seconds must be a time after 1970"))
}

async fn backup(State(point): Point, wait: Waiting) -> Answer<Backup> {
    let timeout = patience(wait)?;
    let vss = point.components()?.vss;
    let ask = vss.clone();
    let features = blocking(move || ask.features(timeout).map_err(Failure::of_daemon)).await?;
    Ok(Json(Backup {
        frozen: vss.is_frozen(),
        auto_recovery: features.auto_recovery(),
    }))
}

async fn freeze(State(point): Point, body: OptionalBody<Freeze>) -> Answer<()> {
    let freeze = or_default(body)?;
    let vss: Vss = point.components()?.vss;
    let wait = timeout(freeze.timeout_seconds)?;
    let hold = freeze.hold_seconds.map_or(Ok(HOLD), |s| timeout(Some(s)))?;
    let frozen = blocking(move || vss.freeze(wait, hold).map_err(Failure::of_daemon)).await?;
    let mut slot = point.frozen.lock().unwrap_or_else(PoisonError::into_inner);
    *slot = Some(frozen);
    Ok(Json(()))
}

async fn thaw(State(point): Point, wait: Waiting) -> Answer<Thawed> {
    let timeout = patience(wait)?;
    let vss = point.components()?.vss;
    let frozen = {
        let mut slot = point.frozen.lock().unwrap_or_else(PoisonError::into_inner);
        slot.take()
    };
    let intact = blocking(move || match frozen {
        Some(frozen) => frozen.thaw(timeout),
        None => vss.thaw(timeout).map(|()| false),
    });
    Ok(Json(Thawed {
        intact: intact.await?,
    }))
}

async fn copy_file(State(point): Point, body: Body<Copy>) -> Answer<Copied> {
    let Json(copy) = body?;
    let component = point.components()?.file_copy;
    let timeout = timeout(copy.timeout_seconds)?;
    let flags = CopyFlags {
        overwrite: copy.overwrite,
        create_path: copy.create_path,
    };
    let bytes = blocking(move || {
        let mut source = File::open(&copy.source)?;
        let metadata = source.metadata()?;
        if !metadata.is_file() {
            let what = std::io::Error::other("the source is no regular file");
            return Err(CopyError::Source(what));
        }
        let size = metadata.len();
        let mut go_on = |_| ControlFlow::Continue(());
        let destination = &copy.destination;
        component.copy(&mut source, size, destination, flags, timeout, &mut go_on)?;
        Ok(size)
    });
    Ok(Json(Copied {
        bytes: bytes.await?,
    }))
}
