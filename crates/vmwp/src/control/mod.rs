//! The control socket: HTTP with JSON over a Unix socket, for whoever manages
//! the VM. The interface is described in `docs/control-socket.md`.

mod components;
mod disks;
mod failure;
mod kvp;
mod vm;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use axum::extract::Path;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::http::StatusCode;
use axum::{Json, Router};
use tokio::sync::oneshot;
use vdev::Chipset;
use vid::Partition;
use vsp::ic::Frozen;

use failure::Failure;

use crate::components::Components;
use crate::config::{StopRequest, VmConfig};
use crate::disks::Disks;
use crate::machine::{End, EndSlot};

/// Largest request body that is read, in bytes.
const MAX_BODY: usize = 64 << 10;

/// The parts of the VM between two resets that the socket reaches.
pub(crate) struct Running {
    pub(crate) partition: Weak<Partition>,
    pub(crate) chipset: Weak<Chipset>,
    pub(crate) end: Weak<EndSlot>,
    pub(crate) components: Components,
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
    disks: Arc<Disks>,
    /// The guest, frozen by a request.
    frozen: Mutex<Option<Frozen>>,
}

impl ControlPoint {
    pub(crate) fn new(config: &VmConfig, disks: Arc<Disks>) -> Arc<Self> {
        Arc::new(Self {
            processors: config.processors,
            memory_bytes: config.memory_bytes,
            started: Instant::now(),
            resets: AtomicU64::new(0),
            running: Mutex::new(None),
            stop: config.stop.clone(),
            disks,
            frozen: Mutex::default(),
        })
    }

    /// A machine runs now, or none does.
    pub(crate) fn set_running(&self, running: Option<Running>) {
        *self.frozen.lock().unwrap_or_else(PoisonError::into_inner) = None;
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

    /// The components of the guest that runs now.
    fn components(&self) -> Result<Components, Failure> {
        let running = self.running();
        let components = running.as_ref().map(|running| running.components.clone());
        components.ok_or_else(Failure::not_running)
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Answer<T> = Result<Json<T>, Failure>;
/// A request's body.
type Body<T> = Result<Json<T>, JsonRejection>;
/// A body that may be missing, where everything in it has a default.
type OptionalBody<T> = Result<Option<Json<T>>, JsonRejection>;
/// The variable parts of a resource's path.
type At<T> = Result<Path<T>, PathRejection>;

fn or_default<T: Default>(body: OptionalBody<T>) -> Result<T, Failure> {
    Ok(body?.map(|Json(body)| body).unwrap_or_default())
}

/// Does what may wait for the guest or for a file, off the socket's thread.
async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, Failure>
where
    T: Send + 'static,
    E: Into<Failure> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the request was given up",
        )),
    }
}

async fn no_such_resource() -> Answer<()> {
    let error = "no such resource; docs/control-socket.md lists them";
    Err(Failure::new(StatusCode::NOT_FOUND, error))
}

async fn wrong_method() -> Answer<()> {
    let error = "the resource has no such method; docs/control-socket.md lists them";
    Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, error))
}

fn router(point: Arc<ControlPoint>) -> Router {
    Router::new()
        .merge(vm::routes())
        .merge(disks::routes())
        .merge(components::routes())
        .merge(kvp::routes())
        .fallback(no_such_resource)
        .method_not_allowed_fallback(wrong_method)
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
    pub(crate) fn serve(path: &std::path::Path, point: Arc<ControlPoint>) -> io::Result<Self> {
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
            disks: Arc::default(),
            frozen: Mutex::default(),
        })
    }

    fn request(path: &std::path::Path, line: &str) -> String {
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
        for (line, status) in [
            ("GET /v1/vm/turn-off", 405),
            ("DELETE /v1/vm/disks/0/300", 400),
            ("POST /v1/vm/disks/a/0/eject", 400),
            // Nothing in their bodies must be given.
            ("POST /v1/vm/disks/0/7/eject", 404),
            ("POST /v1/vm/shutdown", 409),
            ("POST /v1/vm/freeze", 409),
            ("PUT /v1/vm/time", 409),
            ("POST /v1/vm/files", 415),
            ("GET /v1/vm/kvp/guest?timeout_seconds=x", 400),
            ("GET /v1/vm/kvp/guest?timeout_seconds=3601", 400),
            ("GET /v1/vm/kvp/guest?timeout_seconds=1", 409),
            ("GET /v1/vm/kvp/other", 404),
        ] {
            let answer = request(&path, line);
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{answer}"
            );
            assert!(answer.contains("{\"error\":\""), "{answer}");
        }
        assert!(!point.stop.is_requested());
        assert!(request(&path, "POST /v1/vm/turn-off").starts_with("HTTP/1.1 202"));
        assert!(point.stop.is_requested());
        drop(socket);
        assert!(!path.exists());
    }
}
