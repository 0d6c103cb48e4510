//! What a registry asks of a caller that it does not know, and how the caller answers.
//!
//! A registry answers 401 with a challenge. `Basic` wants name and password with every request;
//! `Bearer` names a token server, which gives a token for a while to whom it takes us for.

use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Client, Url};
use serde::Deserialize;
use swarm_proto::registry_auth::Credentials;

use super::endpoint::{Endpoint, Trust};
use super::trouble::Trouble;
use super::{Registries, connection};

/// How this client introduces itself to token servers.
const CLIENT_ID: &str = "swarmd";
/// Bytes of a token server's answer: tokens with many claims have some kilobytes.
const ANSWER_MAX: usize = 256 << 10;

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: String,
        scope: Option<String>,
    },
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

/// Answers the challenge of a 401 from an endpoint with the value of an `Authorization` header.
pub(super) async fn answer(
    (registries, endpoint): (&Registries, &Endpoint),
    (headers, path): (&HeaderMap, &str),
    credentials: &Credentials,
) -> Result<HeaderValue, Trouble> {
    let value = match (challenge(headers), credentials) {
        (_, Credentials::Registry(token)) => format!("Bearer {token}"),
        (Some(Challenge::Basic), Credentials::Basic { username, password }) => {
            basic(username, password)
        }
        (Some(Challenge::Basic), Credentials::Anonymous | Credentials::Identity(_)) => {
            return Err(unauthorized("it wants a user name and a password"));
        }
        (
            Some(Challenge::Bearer {
                realm,
                service,
                scope,
            }),
            _,
        ) => {
            let scope = scope.unwrap_or_else(|| format!("repository:{path}:pull"));
            let realm = Url::parse(&realm)
                .map_err(|_| Trouble::Wrong("it names no token server".to_owned()))?;
            // Whoever reads along there has the password.
            if registries.trust_of_realm(endpoint, &realm) == Trust::Verified
                && realm.scheme() != "https"
            {
                return Err(Trouble::Wrong(format!(
                    "its token server {} is not behind HTTPS; name that as an insecure registry if it is meant",
                    realm.origin().ascii_serialization()
                )));
            }
            let http = registries.token_client(endpoint, &realm);
            let http = http.map_err(|error| Trouble::Wrong(error.to_string()))?;
            let token = token(&http, realm, (&service, &scope), credentials).await?;
            format!("Bearer {token}")
        }
        (None, _) => return Err(unauthorized("it does not say how to sign in")),
    };
    let mut value = HeaderValue::from_str(&value)
        .map_err(|_| Trouble::Wrong("its token is no text for a header".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The words for a caller that was not let in.
pub(super) fn unauthorized(reason: &str) -> Trouble {
    Trouble::Refused {
        code: 401,
        reason: format!(
            "not authorized: {reason}; give credentials with the service (--with-registry-auth) or in the node's \
             registry credentials"
        ),
        after: None,
    }
}

fn basic(username: &str, password: &str) -> String {
    use base64::Engine as _;
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
    format!("Basic {pair}")
}

/// Gets a token for a scope: as nobody, by name and password, or for an identity token.
async fn token(
    http: &Client,
    mut realm: Url,
    (service, scope): (&str, &str),
    credentials: &Credentials,
) -> Result<String, Trouble> {
    let request = match credentials {
        Credentials::Identity(refresh) => {
            let mut form = Url::parse("form:").map_err(|_| Trouble::Wrong(String::new()))?;
            form.query_pairs_mut()
                .append_pair("grant_type", "refresh_token")
                .append_pair("service", service)
                .append_pair("client_id", CLIENT_ID)
                .append_pair("scope", scope)
                .append_pair("refresh_token", refresh);
            http.post(realm)
                .header("content-type", "application/x-www-form-urlencoded")
                .body(form.query().unwrap_or_default().to_owned())
        }
        Credentials::Anonymous | Credentials::Basic { .. } | Credentials::Registry(_) => {
            realm
                .query_pairs_mut()
                .append_pair("service", service)
                .append_pair("scope", scope);
            let request = http.get(realm);
            match credentials {
                Credentials::Basic { username, password } => {
                    request.basic_auth(username, Some(password))
                }
                Credentials::Anonymous | Credentials::Registry(_) | Credentials::Identity(_) => {
                    request
                }
            }
        }
    };
    let response = connection::send(request).await?;
    let code = response.status().as_u16();
    if matches!(code, 401 | 403) {
        return Err(unauthorized("its token server refuses these credentials"));
    }
    if !response.status().is_success() {
        let trouble = connection::refusal(response).await;
        return Err(match trouble {
            Trouble::Refused {
                code,
                reason,
                after,
            } => Trouble::Refused {
                code,
                reason: format!("its token server: {reason}"),
                after,
            },
            other @ (Trouble::Connection(_) | Trouble::Wrong(_)) => other,
        });
    }
    let body = connection::body(response, ANSWER_MAX).await?;
    let wrong = || Trouble::Wrong("its token server's answer holds no token".to_owned());
    let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| wrong())?;
    match (answer.token.is_empty(), answer.access_token.is_empty()) {
        (false, _) => Ok(answer.token),
        (true, false) => Ok(answer.access_token),
        (true, true) => Err(wrong()),
    }
}

/// The challenge among those of an answer that we can meet best.
fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut found = None;
    for header in headers.get_all(WWW_AUTHENTICATE) {
        let Some(challenges) = header
            .to_str()
            .ok()
            .and_then(|text| http_auth::parse_challenges(text).ok())
        else {
            continue;
        };
        for challenge in &challenges {
            let parameter = |name: &str| {
                let mut parameters = challenge.params.iter();
                let found = parameters.find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = parameter("realm")
            {
                return Some(Challenge::Bearer {
                    realm,
                    service: parameter("service").unwrap_or_default(),
                    scope: parameter("scope"),
                });
            }
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                found = Some(Challenge::Basic);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_challenge_that_can_be_met() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(WWW_AUTHENTICATE, text.parse().unwrap());
            challenge(&headers)
        };
        assert_eq!(
            of(r#"Basic realm="Registry Realm""#),
            Some(Challenge::Basic)
        );
        let bearer = Challenge::Bearer {
            realm: "https://auth.test/token".to_owned(),
            service: "reg.test".to_owned(),
            scope: Some("repository:a/b:pull".to_owned()),
        };
        let text = r#"Bearer realm="https://auth.test/token",service="reg.test",scope="repository:a/b:pull""#;
        assert_eq!(of(text), Some(bearer.clone()));
        assert_eq!(of(&format!(r#"Basic realm="x", {text}"#)), Some(bearer));
        assert_eq!(of("Negotiate"), None);
        assert_eq!(of("\"\"\",,,="), None);
    }
}
