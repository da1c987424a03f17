//! Key-value exchange with a guest.

use super::answer;
use super::guest::{Guest, PATIENCE, Running, say};
use crate::ic::*;
use std::sync::mpsc::channel;
use std::time::Duration;

const V4: IcVersion = IcVersion::new(4, 0);
const V5: IcVersion = IcVersion::new(5, 0);
/// Where a pair begins in the message, behind the header: type, sizes, key
/// and value.
const PAIR: usize = 24;
const VALUE: usize = PAIR + 12 + 512;

fn set(bytes: &mut [u8], at: usize, number: u32) {
    bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
}

fn put(bytes: &mut [u8], at: usize, text: &str) -> u32 {
    let units: Vec<u8> = text
        .encode_utf16()
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect();
    bytes[at..at + units.len()].copy_from_slice(&units);
    units.len() as u32
}

fn get(bytes: &[u8], at: usize) -> String {
    let units = bytes[at..]
        .chunks(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    String::from_utf16(&units.take_while(|&unit| unit != 0).collect::<Vec<_>>()).unwrap()
}

/// A guest with pools as Linux's daemon has them: all values are text.
/// `forgetful`, as its driver is: who asks for one key gets an empty value,
/// and nothing from the pool of what it says of itself.
fn pools(forgetful: bool) -> impl FnMut(&[u8]) -> Option<Vec<u8>> + Send + 'static {
    let mut pools = vec![Vec::<(String, String)>::new(); 5];
    move |request| {
        assert_eq!(request.len(), 2600);
        let pool = &mut pools[usize::from(request[21])];
        let number = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
        let find =
            |pool: &[(String, String)], key: String| pool.iter().position(|(k, _)| *k == key);
        let status = |found: bool| {
            if found {
                IcStatus::OK
            } else {
                IcStatus::NO_MORE_ITEMS
            }
        };
        let (key, value) = (get(request, PAIR + 12), VALUE);
        Some(match request[20] {
            0 => {
                let own = forgetful && request[21] == KvpPool::Auto as u8;
                let at = find(pool, key).filter(|_| !own);
                let mut bytes = answer(request, status(at.is_some()));
                if let Some(at) = at {
                    let text = if forgetful { "" } else { &pool[at].1 };
                    let size = put(&mut bytes, value, text);
                    set(&mut bytes, PAIR, 1);
                    set(&mut bytes, PAIR + 8, size);
                }
                bytes
            }
            1 => {
                let text = match number(PAIR) {
                    1 => get(request, value),
                    4 => number(value).to_string(),
                    8 => u64::from_le_bytes(request[value..value + 8].try_into().unwrap())
                        .to_string(),
                    _ => return Some(answer(request, IcStatus::FAIL)),
                };
                let at = find(pool, key.clone());
                at.map(|at| pool.remove(at));
                pool.push((key, text));
                answer(request, IcStatus::OK)
            }
            2 => {
                let at = find(pool, get(request, PAIR + 4));
                at.map(|at| pool.remove(at));
                answer(request, status(at.is_some()))
            }
            3 => {
                let pair = pool.get(number(PAIR) as usize);
                let mut bytes = answer(request, status(pair.is_some()));
                if let Some((key, text)) = pair {
                    let key_size = put(&mut bytes, PAIR + 16, key);
                    let size = put(&mut bytes, VALUE + 4, text);
                    set(&mut bytes, PAIR + 4, 1);
                    set(&mut bytes, PAIR + 8, key_size);
                    set(&mut bytes, PAIR + 12, size);
                }
                bytes
            }
            _ => answer(request, IcStatus::FAIL),
        })
    }
}

fn with(
    version: IcVersion,
    service: impl FnMut(&[u8]) -> Option<Vec<u8>> + Send + 'static,
) -> (Guest, Running, Kvp) {
    let (device, kvp) = Kvp::new();
    let mut guest = Guest::new(device);
    let running = guest.serve(version, service);
    (guest, running, kvp)
}

fn text(text: &str) -> KvpValue {
    KvpValue::Text(text.into())
}

#[test]
fn pairs_in_all_pools() {
    for forgetful in [false, true] {
        pairs_of(forgetful);
    }
}

fn pairs_of(forgetful: bool) {
    let (mut guest, running, kvp) = with(V4, pools(forgetful));
    for pool in KvpPool::ALL {
        assert_eq!(kvp.enumerate(pool, PATIENCE), Ok(vec![]));
        kvp.set(pool, "eins", &text("größer"), PATIENCE).unwrap();
        kvp.set(pool, "zwei", &KvpValue::U32(7), PATIENCE).unwrap();
        kvp.set(pool, "drei", &KvpValue::U64(1 << 40), PATIENCE)
            .unwrap();
        kvp.set(pool, "eins", &text(""), PATIENCE).unwrap();
        assert_eq!(kvp.get(pool, "zwei", PATIENCE), Ok(Some(text("7"))));
        assert_eq!(kvp.get(pool, "eins", PATIENCE), Ok(Some(text(""))));
        assert_eq!(kvp.delete(pool, "zwei", PATIENCE), Ok(true));
        assert_eq!(kvp.delete(pool, "zwei", PATIENCE), Ok(false));
        assert_eq!(kvp.get(pool, "zwei", PATIENCE), Ok(None));
        let all = vec![
            ("drei".into(), text("1099511627776")),
            ("eins".into(), text("")),
        ];
        assert_eq!(kvp.enumerate(pool, PATIENCE), Ok(all));
    }
    let long = "x".repeat(1023);
    kvp.set(KvpPool::Guest, &long[..255], &text(&long), PATIENCE)
        .unwrap();
    assert_eq!(
        kvp.get(KvpPool::Guest, &long[..255], PATIENCE),
        Ok(Some(text(&long)))
    );
    let too_long = |key: &str, value: &str| kvp.set(KvpPool::Guest, key, &text(value), PATIENCE);
    assert!(matches!(
        too_long(&long[..256], ""),
        Err(IcError::Argument(_))
    ));
    assert!(matches!(
        too_long("a", &format!("{long}x")),
        Err(IcError::Argument(_))
    ));
    guest.close(running.stop());
}

#[test]
fn hostile_values_are_errors() {
    // What the guest writes as type and sizes, and whether it is a value.
    let cases = [
        ((1, 2, 2049), false),
        ((1, 2, 3), false),
        ((1, 2, u32::MAX), false),
        ((4, 2, 8), false),
        ((11, 2, 4), false),
        ((3, 2, 4), false),
        ((0, 0, 0), false),
        ((1, 514, 2), false),
        ((1, 2, 2048), true),
        ((2, 512, 0), true),
        ((4, 2, 4), true),
        ((11, 2, 8), true),
    ];
    for ((value_type, key_size, value_size), good) in cases {
        let mut given = false;
        let (mut guest, running, kvp) = with(V5, move |request| {
            if std::mem::replace(&mut given, true) {
                return Some(answer(request, IcStatus::NO_MORE_ITEMS));
            }
            let mut bytes = answer(request, IcStatus::OK);
            bytes[PAIR + 4..].fill(b'a');
            set(&mut bytes, PAIR + 4, value_type);
            set(&mut bytes, PAIR + 8, key_size);
            set(&mut bytes, PAIR + 12, value_size);
            Some(bytes)
        });
        let result = kvp.enumerate(KvpPool::Auto, PATIENCE);
        assert_eq!(
            result.is_ok(),
            good,
            "{value_type} {key_size} {value_size}: {result:?}"
        );
        guest.close(running.stop());
    }
}

#[test]
fn short_answers_and_pools_without_end() {
    let (mut guest, running, kvp) = with(V4, |request| {
        let mut bytes = answer(request, IcStatus::OK);
        bytes.truncate(100);
        bytes[10..12].copy_from_slice(&80_u16.to_le_bytes());
        Some(bytes)
    });
    let short = Err(IcError::Protocol("a short answer"));
    assert_eq!(kvp.get(KvpPool::Auto, "a", PATIENCE), short);
    assert_eq!(
        kvp.ip_addresses("a", PATIENCE),
        Err(IcError::Protocol("a short answer"))
    );
    guest.close(running.stop());
    let (mut guest, running, kvp) = with(V4, |request| {
        let mut bytes = answer(request, IcStatus::OK);
        set(&mut bytes, PAIR + 4, 1);
        Some(bytes)
    });
    let endless = kvp.enumerate(KvpPool::Auto, Duration::from_secs(60));
    assert_eq!(endless, Err(IcError::Protocol("a pool without an end")));
    guest.close(running.stop());
}

fn info() -> IpInfo {
    let own = |address: &str, prefix| IpAddress {
        address: address.parse().unwrap(),
        prefix: Some(prefix),
        origin: AddressOrigin::Unknown,
    };
    IpInfo {
        ipv4: true,
        ipv6: true,
        dhcp: false,
        addresses: vec![
            own("192.0.2.7", 24),
            own("10.0.0.1", 0),
            own("2001:db8::7", 64),
        ],
        gateways: vec!["192.0.2.1".parse().unwrap(), "fe80::1".parse().unwrap()],
        dns_servers: vec!["192.0.2.53".parse().unwrap()],
    }
}

#[test]
fn addresses_go_there_and_come_back_in_both_forms() {
    for version in [V4, V5] {
        let (seen, requests) = channel();
        let mut kept: Option<Vec<u8>> = None;
        let (mut guest, running, kvp) = with(version, move |request| {
            seen.send(request.to_vec()).unwrap();
            if request[20] == 5 {
                kept = Some(request[22..].to_vec());
                return Some(answer(request, IcStatus::OK));
            }
            let mut bytes = answer(request, IcStatus::OK);
            bytes[22..].copy_from_slice(kept.as_ref()?);
            Some(bytes)
        });
        let mac = "00:15:5D:01:02:03";
        kvp.inject_ip(mac, &info(), PATIENCE).unwrap();
        let sent = requests.recv().unwrap();
        assert_eq!((sent.len(), sent[20]), (20 + 7428, 5));
        if version == V4 {
            assert_eq!(get(&sent, 22), mac);
            assert_eq!(sent[278..280], [3, 0]);
            assert_eq!(get(&sent, 280), "192.0.2.7;10.0.0.1;2001:db8::7");
            assert_eq!(get(&sent, 2328), "255.255.255.0;0.0.0.0;/64");
        } else {
            assert_eq!(sent[24..32], [2, 0, 0, 0, 1, 0, 0, 0]);
            assert_eq!(get(&sent, 48), mac);
        }
        assert_eq!(kvp.ip_addresses(mac, PATIENCE), Ok(info()));
        guest.close(running.stop());
    }
}

#[test]
fn hostile_addresses() {
    let (mut guest, running, kvp) = with(V4, |request| {
        let mut bytes = answer(request, IcStatus::OK);
        bytes[280..2328].fill(b'1');
        Some(bytes)
    });
    let open = Err(IcError::Protocol("a text without an end"));
    assert_eq!(kvp.ip_addresses("a", PATIENCE), open);
    guest.close(running.stop());
    let (mut guest, running, kvp) = with(V4, |request| {
        let mut bytes = answer(request, IcStatus::OK);
        put(&mut bytes, 280, "nonsense;;192.0.2.300;fe80::1%eth0");
        put(&mut bytes, 2328, "1;2");
        Some(bytes)
    });
    let info = kvp.ip_addresses("a", PATIENCE).unwrap();
    assert_eq!(info.addresses.len(), 1);
    assert_eq!(
        (info.addresses[0].prefix, info.ipv4, info.ipv6),
        (None, false, true)
    );
    guest.close(running.stop());
    for at in [24, 28, 32, 36, 40, 44] {
        let (mut guest, running, kvp) = with(V5, move |request| {
            let mut bytes = answer(request, IcStatus::OK);
            set(&mut bytes, at, 65);
            Some(bytes)
        });
        assert!(matches!(
            kvp.ip_addresses("a", PATIENCE),
            Err(IcError::Protocol(_))
        ));
        guest.close(running.stop());
    }
}

#[test]
fn guests_too_old_for_addresses() {
    let (mut guest, running, kvp) = with(IcVersion::new(3, 0), say(IcStatus::OK));
    assert!(matches!(
        kvp.ip_addresses("a", PATIENCE),
        Err(IcError::Unsupported(_))
    ));
    assert!(matches!(
        kvp.inject_ip("a", &info(), PATIENCE),
        Err(IcError::Unsupported(_))
    ));
    guest.close(running.stop());
}
