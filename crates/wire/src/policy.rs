//! What may leave a sandbox, as it is asked for and as it is reported.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Network policy as it is reported: without the values of headers.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicy {
    /// `allow-all`, `deny-all` or `custom`.
    pub mode: String,
    /// Domains that may be reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_domains: Option<Vec<String>>,
    /// Networks that may be reached.
    #[serde(rename = "allowedCIDRs", skip_serializing_if = "Option::is_none")]
    pub allowed_cidrs: Option<Vec<String>>,
    /// Networks that may not.
    #[serde(rename = "deniedCIDRs", skip_serializing_if = "Option::is_none")]
    pub denied_cidrs: Option<Vec<String>>,
    /// Headers that are set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub injection_rules: Option<Vec<InjectionRule>>,
    /// Requests that go elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward_rules: Option<Vec<ForwardRule>>,
}

/// Headers that are set on requests to a domain. In a request with their
/// values, in a reply with their names.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InjectionRule {
    /// Domain.
    pub domain: String,
    /// Names and values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<BTreeMap<String, String>>,
    /// Names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_names: Option<Vec<String>>,
    /// Which requests.
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<serde_json::Value>,
}

impl std::fmt::Debug for InjectionRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InjectionRule({})", self.domain)
    }
}

/// Requests to a domain that go elsewhere.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ForwardRule {
    /// Domain.
    pub domain: String,
    /// Where they go.
    #[serde(rename = "forwardURL")]
    pub forward_url: String,
    /// Which requests.
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<serde_json::Value>,
}

/// Network policy as it is asked for: by mode, by allowed domains and subnets,
/// or in the older form of [`NetworkPolicy`].
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicyRequest {
    /// `allow-all`, `deny-all`, or `custom` with the older form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Domains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<AllowedDomains>,
    /// Networks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnets: Option<Subnets>,
    /// Older form of `allow`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_domains: Option<Vec<String>>,
    /// Older form of `subnets.allow`.
    #[serde(rename = "allowedCIDRs", skip_serializing_if = "Option::is_none")]
    pub allowed_cidrs: Option<Vec<String>>,
    /// Older form of `subnets.deny`.
    #[serde(rename = "deniedCIDRs", skip_serializing_if = "Option::is_none")]
    pub denied_cidrs: Option<Vec<String>>,
    /// Older form of rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub injection_rules: Option<Vec<InjectionRule>>,
    /// Older form of rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward_rules: Option<Vec<ForwardRule>>,
}

/// Domains that may be reached.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AllowedDomains {
    /// As they are.
    List(Vec<String>),
    /// With rules for their requests.
    Rules(BTreeMap<String, Vec<PolicyRule>>),
}

/// Networks that may or may not be reached.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Subnets {
    /// May.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<String>>,
    /// May not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny: Option<Vec<String>>,
}

/// What happens to requests that match. Exactly one of the last three.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRule {
    /// Which requests.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    pub matches: Option<serde_json::Value>,
    /// Headers are set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transform: Option<Vec<Transform>>,
    /// They go elsewhere.
    #[serde(rename = "forwardURL", skip_serializing_if = "Option::is_none")]
    pub forward_url: Option<String>,
    /// They are answered at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<serde_json::Value>,
}

impl std::fmt::Debug for PolicyRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Headers hold secrets.
        f.write_str("PolicyRule")
    }
}

/// Headers that are set.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Transform {
    /// Names and values.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

impl std::fmt::Debug for Transform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Values are secrets.
        f.debug_set().entries(self.headers.keys()).finish()
    }
}
