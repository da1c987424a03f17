//! Disks and optical drives.

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::{Answer, At, Body, ControlPoint, OptionalBody, blocking, or_default};
use crate::disks::{DiskConfig, DriveStatus};

/// One drive, in lists and as the answer to an addition.
#[derive(Debug, Serialize)]
struct DriveView {
    controller: u32,
    lun: u8,
    kind: &'static str,
    path: Option<PathBuf>,
    read_only: bool,
    size_bytes: Option<u64>,
    format: Option<disk::Format>,
}

impl From<DriveStatus> for DriveView {
    fn from(status: DriveStatus) -> Self {
        Self {
            controller: status.location.0,
            lun: status.location.1,
            kind: if status.optical { "dvd" } else { "disk" },
            path: status.path,
            read_only: status.read_only,
            size_bytes: status.size,
            format: status.format,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    #[default]
    Disk,
    Dvd,
}

/// `POST /v1/vm/disks`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Addition {
    path: Option<PathBuf>,
    #[serde(default)]
    kind: Kind,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    controller: u32,
    lun: Option<u8>,
}

/// Where an added drive is.
#[derive(Debug, Serialize)]
struct Place {
    controller: u32,
    lun: u8,
}

/// `POST …/eject`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ejection {
    #[serde(default)]
    force: bool,
}

/// `POST …/insert`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Insertion {
    path: PathBuf,
}

/// `POST …/resize`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resizing {
    size_bytes: u64,
}

type Point = State<Arc<ControlPoint>>;

pub(super) fn routes() -> Router<Arc<ControlPoint>> {
    let drive = "/v1/vm/disks/{controller}/{lun}";
    Router::new()
        .route("/v1/vm/disks", get(list).post(add))
        .route(drive, delete(remove))
        .route(&format!("{drive}/eject"), post(eject))
        .route(&format!("{drive}/insert"), post(insert))
        .route(&format!("{drive}/resize"), post(resize))
}

async fn list(State(point): Point) -> Answer<Vec<DriveView>> {
    let drives = point.disks.list().into_iter();
    Ok(Json(drives.map(DriveView::from).collect()))
}

async fn add(State(point): Point, body: Body<Addition>) -> Answer<Place> {
    let Json(addition) = body?;
    let optical = matches!(addition.kind, Kind::Dvd);
    let config = DiskConfig {
        path: addition.path,
        read_only: addition.read_only || optical,
        optical,
        controller: addition.controller,
        lun: addition.lun,
    };
    let (controller, lun) = blocking(move || point.disks.add(&config)).await?;
    Ok(Json(Place { controller, lun }))
}

async fn remove(State(point): Point, location: At<(u32, u8)>) -> Answer<()> {
    let Path(location) = location?;
    blocking(move || point.disks.remove(location)).await?;
    Ok(Json(()))
}

async fn eject(
    State(point): Point,
    location: At<(u32, u8)>,
    body: OptionalBody<Ejection>,
) -> Answer<()> {
    let Path(location) = location?;
    let Ejection { force } = or_default(body)?;
    blocking(move || point.disks.eject(location, force)).await?;
    Ok(Json(()))
}

async fn insert(State(point): Point, location: At<(u32, u8)>, body: Body<Insertion>) -> Answer<()> {
    let Path(location) = location?;
    let Json(Insertion { path }) = body?;
    blocking(move || point.disks.insert(location, path)).await?;
    Ok(Json(()))
}

async fn resize(State(point): Point, location: At<(u32, u8)>, body: Body<Resizing>) -> Answer<()> {
    let Path(location) = location?;
    let Json(Resizing { size_bytes }) = body?;
    blocking(move || point.disks.resize(location, size_bytes)).await?;
    Ok(Json(()))
}
