//! Key-value pairs and network addresses.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use vsp::ic::{AddressOrigin, IpAddress, IpInfo, KvpPool, KvpValue};

use super::components::{Waiting, patience};
use super::{Answer, At, Body, ControlPoint, Failure, blocking};

/// A value: a text, or a number that was set as one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Value {
    Number(u64),
    Text(String),
}

impl From<KvpValue> for Value {
    fn from(value: KvpValue) -> Self {
        match value {
            KvpValue::Text(text) => Self::Text(text),
            KvpValue::U32(number) => Self::Number(number.into()),
            KvpValue::U64(number) => Self::Number(number),
        }
    }
}

impl From<Value> for KvpValue {
    fn from(value: Value) -> Self {
        match value {
            Value::Text(text) => Self::Text(text),
            Value::Number(number) => u32::try_from(number).map_or(Self::U64(number), KvpValue::U32),
        }
    }
}

#[derive(Debug, Serialize)]
struct Pair {
    key: String,
    value: Value,
}

/// `PUT /v1/vm/kvp/POOL/KEY`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewValue {
    value: Value,
}

/// The answer to a deletion.
#[derive(Debug, Serialize)]
struct Deleted {
    existed: bool,
}

/// An address in a request or an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Address {
    address: IpAddr,
    prefix: Option<u8>,
}

/// `GET` and `PUT /v1/vm/network/ADAPTER`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Network {
    #[serde(default)]
    ipv4: bool,
    #[serde(default)]
    ipv6: bool,
    #[serde(default)]
    dhcp: bool,
    #[serde(default)]
    addresses: Vec<Address>,
    #[serde(default)]
    gateways: Vec<IpAddr>,
    #[serde(default)]
    dns_servers: Vec<IpAddr>,
}

impl From<IpInfo> for Network {
    fn from(info: IpInfo) -> Self {
        let address = |one: IpAddress| Address {
            address: one.address,
            prefix: one.prefix,
        };
        Self {
            ipv4: info.ipv4,
            ipv6: info.ipv6,
            dhcp: info.dhcp,
            addresses: info.addresses.into_iter().map(address).collect(),
            gateways: info.gateways,
            dns_servers: info.dns_servers,
        }
    }
}

impl From<Network> for IpInfo {
    fn from(network: Network) -> Self {
        let address = |one: Address| IpAddress {
            address: one.address,
            prefix: one.prefix,
            origin: AddressOrigin::Static,
        };
        Self {
            ipv4: network.ipv4,
            ipv6: network.ipv6,
            dhcp: network.dhcp,
            addresses: network.addresses.into_iter().map(address).collect(),
            gateways: network.gateways,
            dns_servers: network.dns_servers,
        }
    }
}

type Point = State<Arc<ControlPoint>>;

pub(super) fn routes() -> Router<Arc<ControlPoint>> {
    Router::new()
        .route("/v1/vm/kvp/{pool}", get(enumerate))
        .route(
            "/v1/vm/kvp/{pool}/{key}",
            get(read).put(write).delete(remove),
        )
        .route("/v1/vm/network/{adapter}", get(addresses).put(inject))
}

fn pool(name: &str) -> Result<KvpPool, Failure> {
    match name {
        "external" => Ok(KvpPool::External),
        "guest" => Ok(KvpPool::Guest),
        "auto" => Ok(KvpPool::Auto),
        "auto-external" => Ok(KvpPool::AutoExternal),
        "auto-internal" => Ok(KvpPool::AutoInternal),
        _ => Err(Failure::new(
            StatusCode::NOT_FOUND,
            "no such pool; there are external, guest, auto, auto-external and auto-internal",
        )),
    }
}

async fn enumerate(State(point): Point, name: At<String>, wait: Waiting) -> Answer<Vec<Pair>> {
    let Path(name) = name?;
    let pool = pool(&name)?;
    let timeout = patience(wait)?;
    let kvp = point.components()?.kvp;
    let pairs = blocking(move || kvp.enumerate(pool, timeout)).await?;
    let pair = |(key, value): (String, KvpValue)| Pair {
        key,
        value: value.into(),
    };
    Ok(Json(pairs.into_iter().map(pair).collect()))
}

async fn read(State(point): Point, at: At<(String, String)>, wait: Waiting) -> Answer<Pair> {
    let Path((name, key)) = at?;
    let pool = pool(&name)?;
    let timeout = patience(wait)?;
    let kvp = point.components()?.kvp;
    let asked = key.clone();
    let value = blocking(move || kvp.get(pool, &asked, timeout)).await?;
    let value = value.ok_or_else(|| Failure::new(StatusCode::NOT_FOUND, "no such key"))?;
    Ok(Json(Pair {
        key,
        value: value.into(),
    }))
}

async fn write(
    State(point): Point,
    at: At<(String, String)>,
    wait: Waiting,
    body: Body<NewValue>,
) -> Answer<()> {
    let Path((name, key)) = at?;
    let pool = pool(&name)?;
    let Json(NewValue { value }) = body?;
    let timeout = patience(wait)?;
    let kvp = point.components()?.kvp;
    blocking(move || kvp.set(pool, &key, &value.into(), timeout)).await?;
    Ok(Json(()))
}

async fn remove(State(point): Point, at: At<(String, String)>, wait: Waiting) -> Answer<Deleted> {
    let Path((name, key)) = at?;
    let pool = pool(&name)?;
    let timeout = patience(wait)?;
    let kvp = point.components()?.kvp;
    let existed = blocking(move || kvp.delete(pool, &key, timeout)).await?;
    Ok(Json(Deleted { existed }))
}

async fn addresses(State(point): Point, adapter: At<String>, wait: Waiting) -> Answer<Network> {
    let Path(adapter) = adapter?;
    let timeout = patience(wait)?;
    let kvp = point.components()?.kvp;
    let info = blocking(move || kvp.ip_addresses(&adapter, timeout)).await?;
    Ok(Json(info.into()))
}

async fn inject(
    State(point): Point,
    adapter: At<String>,
    wait: Waiting,
    body: Body<Network>,
) -> Answer<()> {
    let Path(adapter) = adapter?;
    let Json(network) = body?;
    let timeout = patience(wait)?;
    let kvp = point.components()?.kvp;
    blocking(move || kvp.inject_ip(&adapter, &network.into(), timeout)).await?;
    Ok(Json(()))
}
