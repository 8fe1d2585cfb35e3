// SPDX-License-Identifier: GPL-2.0 OR MIT
//! By which names the control API may be called over TCP.
//!
//! A page in somebody's browser can be made to call an address of this machine under a name of its
//! own (DNS rebinding): the browser then thinks that it talks to the page's own server, and shows the
//! answer to the page. But it says that name in `Host`. So a name must be one of ours; an address is
//! no such trick.

use std::net::IpAddr;

use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{header, Version};
use neonsan_api::{ApiError, ErrorCode};

/// Refuses a request that calls the node by a name which is none of its own. `hosts` are those of
/// the configuration.
pub(super) fn check_host(head: &Parts, hosts: &[String]) -> Result<(), ApiError> {
    // A request for a whole URL names the host there, and `Host` does not count.
    if let Some(host) = head.uri.host() {
        return check(host, hosts);
    }
    let mut values = head.headers.get_all(header::HOST).iter();
    match (values.next(), values.next()) {
        // Older than `Host`, and than every browser.
        (None, _) if head.version <= Version::HTTP_10 => Ok(()),
        (Some(value), None) => match Authority::try_from(value.as_bytes()) {
            Ok(authority) => check(authority.host(), hosts),
            Err(_) => Err(refusal("a Host that is none")),
        },
        (None, _) => Err(refusal("no Host")),
        (Some(_), Some(_)) => Err(refusal("two Hosts")),
    }
}

fn check(host: &str, hosts: &[String]) -> Result<(), ApiError> {
    let address = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let is_address = address.unwrap_or(host).parse::<IpAddr>().is_ok();
    let name = host.strip_suffix('.').unwrap_or(host);
    let own = rustix::system::uname();
    let own = own.nodename().to_str().ok().filter(|own| !own.is_empty());
    let is_ours = is_address
        || name.eq_ignore_ascii_case("localhost")
        || own.is_some_and(|own| name.eq_ignore_ascii_case(own))
        || hosts.iter().any(|host| name.eq_ignore_ascii_case(host));
    if is_ours {
        Ok(())
    } else {
        Err(refusal(&format!("the Host {name:?}")))
    }
}

fn refusal(what: &str) -> ApiError {
    ApiError::new(
        ErrorCode::NotPermitted,
        format!("the request has {what}, which is no name of this node"),
    )
    .with_hint("call the node by its address, or add the name to control.hosts of the node")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use hyper::Request;

    fn head(version: Version, uri: &str, hosts: &[&str]) -> Parts {
        let mut request = Request::builder().version(version).uri(uri);
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn allowed(uri: &str, hosts: &[&str]) -> bool {
        let configured = ["node1.example.org".to_owned()];
        check_host(&head(Version::HTTP_11, uri, hosts), &configured).is_ok()
    }

    #[test]
    fn addresses_and_own_names_are_allowed_and_no_others() {
        let own = rustix::system::uname()
            .nodename()
            .to_str()
            .unwrap()
            .to_owned();
        for good in [
            "127.0.0.1:9667",
            "10.1.2.3",
            "[::1]:9667",
            "[fe80::1]",
            "localhost",
            "LOCALHOST:9667",
            "localhost.",
            "node1.example.org:9667",
            &own,
        ] {
            assert!(allowed("/v1/node", &[good]), "{good}");
        }
        for bad in [
            "evil.example",
            "evil.example:9667",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "node1.example.org.evil.example",
            "",
            "a b",
        ] {
            assert!(!allowed("/v1/node", &[bad]), "{bad}");
        }
    }

    #[test]
    fn a_host_is_named_once() {
        assert!(!allowed("/v1/node", &[]));
        assert!(!allowed("/v1/node", &["localhost", "evil.example"]));
        assert!(!allowed("http://evil.example/v1/node", &["localhost"]));
        assert!(allowed("http://localhost/v1/node", &["localhost"]));
        check_host(&head(Version::HTTP_10, "/v1/node", &[]), &[]).unwrap();
    }
}
