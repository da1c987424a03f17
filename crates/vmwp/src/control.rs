//! The control socket: HTTP with JSON over a Unix socket, for whoever manages
//! the VM. The interface is described in `docs/control-socket.md`.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use tokio::sync::oneshot;
use vdev::Chipset;
use vid::Partition;

use crate::config::{StopRequest, VmConfig};
use crate::machine::{End, EndSlot};

/// Largest request body that is read, in bytes.
const MAX_BODY: usize = 64 << 10;

/// The parts of the VM between two resets that the socket reaches.
pub(crate) struct Running {
    pub(crate) partition: Weak<Partition>,
    pub(crate) chipset: Weak<Chipset>,
    pub(crate) end: Weak<EndSlot>,
}

impl Running {
    fn upgrade(&self) -> Option<(Arc<EndSlot>, Arc<Partition>)> {
        Some((self.end.upgrade()?, self.partition.upgrade()?))
    }
}

/// What outlives a reset.
pub(crate) struct ControlPoint {
    processors: u32,
    memory_bytes: u64,
    started: Instant,
    resets: AtomicU64,
    running: Mutex<Option<Running>>,
    stop: StopRequest,
}

impl ControlPoint {
    pub(crate) fn new(config: &VmConfig) -> Arc<Self> {
        Arc::new(Self {
            processors: config.processors,
            memory_bytes: config.memory_bytes,
            started: Instant::now(),
            resets: AtomicU64::new(0),
            running: Mutex::new(None),
            stop: config.stop.clone(),
        })
    }

    /// A machine runs now, or none does.
    pub(crate) fn set_running(&self, running: Option<Running>) {
        *self.running() = running;
    }

    /// The guest was reset.
    pub(crate) fn count_reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends what runs now, if anything does.
    pub(crate) fn end(&self, how: End) {
        let parts = self.running().as_ref().and_then(Running::upgrade);
        if let Some((end, partition)) = parts {
            end.set(how);
            partition.stop();
        }
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
}

/// The answer where something is wrong.
#[derive(Debug, Serialize)]
struct Problem {
    error: &'static str,
}

type Answer<T> = Result<Json<T>, (StatusCode, Json<Problem>)>;

fn problem<T>(status: StatusCode, error: &'static str) -> Answer<T> {
    Err((status, Json(Problem { error })))
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
        .and_then(|running| running.chipset.upgrade());
    let Some(chipset) = chipset else {
        return problem(StatusCode::CONFLICT, "the VM is not running");
    };
    let (unclaimed_reads, unclaimed_writes) = chipset.unclaimed();
    let serial_bytes_lost = chipset.serial_lost(0);
    Ok(Json(Statistics {
        unclaimed_reads,
        unclaimed_writes,
        serial_bytes_lost,
    }))
}

async fn turn_off(State(point): State<Arc<ControlPoint>>) -> StatusCode {
    point.stop.request();
    StatusCode::ACCEPTED
}

async fn reset(State(point): State<Arc<ControlPoint>>) -> Answer<()> {
    if point
        .running()
        .as_ref()
        .and_then(Running::upgrade)
        .is_none()
    {
        return problem(StatusCode::CONFLICT, "the VM is not running");
    }
    point.end(End::Reset);
    Ok(Json(()))
}

async fn nmi(State(point): State<Arc<ControlPoint>>) -> Answer<()> {
    let partition = point
        .running()
        .as_ref()
        .and_then(|running| running.partition.upgrade());
    let Some(partition) = partition else {
        return problem(StatusCode::CONFLICT, "the VM is not running");
    };
    match partition.inject_nmi(0) {
        Ok(()) => Ok(Json(())),
        Err(_) => problem(StatusCode::CONFLICT, "the processor takes no NMI now"),
    }
}

async fn no_such_resource() -> Answer<()> {
    problem(
        StatusCode::NOT_FOUND,
        "no such resource; docs/control-socket.md lists them",
    )
}

fn router(point: Arc<ControlPoint>) -> Router {
    Router::new()
        .route("/v1/vm", get(state))
        .route("/v1/vm/statistics", get(statistics))
        .route("/v1/vm/turn-off", post(turn_off))
        .route("/v1/vm/reset", post(reset))
        .route("/v1/vm/nmi", post(nmi))
        .fallback(no_such_resource)
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY))
        .with_state(point)
}

/// The served socket; it is removed when this is dropped.
pub(crate) struct ControlSocket {
    path: PathBuf,
    shutdown: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ControlSocket {
    /// Serves `point` at `path`, for the user who runs the VM only. The path
    /// has been checked: a socket that is there belongs to nobody any more.
    pub(crate) fn serve(path: &Path, point: Arc<ControlPoint>) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let (shutdown, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                runtime.block_on(async {
                    let Ok(listener) = tokio::net::UnixListener::from_std(listener) else {
                        return;
                    };
                    let server = axum::serve(listener, router(point));
                    tokio::select! {
                        // Serving never ends by itself.
                        _ = server => {}
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self {
            path: path.to_owned(),
            shutdown: Some(shutdown),
            thread: Some(thread),
        })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // The thread may have ended already.
        if let Some(shutdown) = self.shutdown.take() {
            let _ = shutdown.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn point() -> Arc<ControlPoint> {
        Arc::new(ControlPoint {
            processors: 2,
            memory_bytes: 64 << 20,
            started: Instant::now(),
            resets: AtomicU64::new(3),
            running: Mutex::new(None),
            stop: StopRequest::new(),
        })
    }

    fn request(path: &Path, line: &str) -> String {
        let mut stream = UnixStream::connect(path).unwrap();
        let text = format!("{line} HTTP/1.1\r\nHost: vm\r\nConnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn state_turn_off_and_errors() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let point = point();
        let socket = ControlSocket::serve(&path, point.clone()).unwrap();
        let answer = request(&path, "GET /v1/vm");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            answer.contains("\"processors\":2") && answer.contains("\"resets\":3"),
            "{answer}"
        );
        assert!(answer.contains("\"state\":\"starting\""), "{answer}");
        assert!(request(&path, "POST /v1/vm/reset").starts_with("HTTP/1.1 409"));
        assert!(request(&path, "GET /v1/nothing").starts_with("HTTP/1.1 404"));
        assert!(request(&path, "GET /v1/vm/turn-off").starts_with("HTTP/1.1 405"));
        assert!(!point.stop.is_requested());
        assert!(request(&path, "POST /v1/vm/turn-off").starts_with("HTTP/1.1 202"));
        assert!(point.stop.is_requested());
        drop(socket);
        assert!(!path.exists());
    }
}
