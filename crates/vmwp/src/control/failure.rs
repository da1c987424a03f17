//! Answers to requests that cannot be carried out.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use disk::DiskError;
use serde::Serialize;
use vsp::ic::{CopyError, IcError, IcStatus};

use crate::disks::DriveError;

/// A status and one line for a person.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    error: String,
}

#[derive(Serialize)]
struct Body {
    error: String,
}

impl Failure {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self {
            status,
            error: error.into(),
        }
    }

    pub(super) fn conflict(error: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, error)
    }

    pub(super) fn argument(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// An error of a component whose work a daemon does in the guest.
    pub(super) fn of_daemon(error: IcError) -> Self {
        // All that Linux's driver says where nobody has its other end.
        let hint = match error {
            IcError::Guest(IcStatus::FAIL) => "; perhaps its daemon does not run",
            _ => "",
        };
        let mut failure = Self::from(error);
        failure.error += hint;
        failure
    }

    pub(super) fn not_running() -> Self {
        Self::conflict("the VM is not running")
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(Body { error: self.error })).into_response()
    }
}

impl From<IcError> for Failure {
    fn from(error: IcError) -> Self {
        let status = match &error {
            IcError::NotConnected | IcError::NotReady | IcError::Busy | IcError::Closed => {
                StatusCode::CONFLICT
            }
            IcError::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            IcError::Timeout => StatusCode::GATEWAY_TIMEOUT,
            IcError::Guest(_) | IcError::Protocol(_) => StatusCode::BAD_GATEWAY,
            IcError::Argument(_) => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Guest(error) => Self::of_daemon(error),
            CopyError::Source(_) => Self::argument(error.to_string()),
            CopyError::Stopped => Self::conflict(error.to_string()),
        }
    }
}

impl From<DriveError> for Failure {
    fn from(error: DriveError) -> Self {
        let status = match &error {
            DriveError::NoDrive(..) => StatusCode::NOT_FOUND,
            DriveError::InUse(..) | DriveError::Full(_) | DriveError::Locked => {
                StatusCode::CONFLICT
            }
            DriveError::Disk(error) if matches!(error.root(), DiskError::Locked { .. }) => {
                StatusCode::CONFLICT
            }
            DriveError::NoPlace(..)
            | DriveError::WrongKind(..)
            | DriveError::Argument(_)
            | DriveError::Disk(_) => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<PathRejection> for Failure {
    fn from(rejection: PathRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}
