//! The words in which problems and conditions give their reason, and how bad each is.
//!
//! Those of Gateway API and the Inference Extension are theirs; the rest are ours and documented in
//! the user manual.

use forebay_model::snapshot::Problem;

/// How much a problem costs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// Served as written; worth knowing.
    Info,
    /// Served, but part of what was written has no effect.
    Warning,
    /// Something that was asked for is not served.
    Error,
}

/// How bad `problem` is.
#[must_use]
pub fn severity(problem: &Problem) -> Severity {
    match problem.reason {
        UNKNOWN_FIELD | UNSUPPORTED_FIELD | UNKNOWN_KIND | UNKNOWN_LABEL | DUPLICATE_ENDPOINT
        | INVALID_PICKER | INVALID_SELECTOR | SHADOWED | PENDING | ADDRESS_NOT_ASSIGNED
        | SOURCE_UNREACHABLE | KIND_NOT_READ => Severity::Warning,
        _ => Severity::Error,
    }
}

// Gateway API and the Inference Extension.
pub(crate) const ACCEPTED: &str = "Accepted";
pub(crate) const PROGRAMMED: &str = "Programmed";
pub(crate) const RESOLVED_REFS: &str = "ResolvedRefs";
pub(crate) const NO_CONFLICTS: &str = "NoConflicts";
pub(crate) const INVALID: &str = "Invalid";
pub(crate) const PENDING: &str = "Pending";
pub(crate) const SUPPORTED_VERSION: &str = "SupportedVersion";
pub(crate) const UNSUPPORTED_VERSION: &str = "UnsupportedVersion";
pub(crate) const INVALID_PARAMETERS: &str = "InvalidParameters";
pub(crate) const UNSUPPORTED_ADDRESS: &str = "UnsupportedAddress";
pub(crate) const ADDRESS_NOT_ASSIGNED: &str = "AddressNotAssigned";
pub(crate) const ADDRESS_NOT_USABLE: &str = "AddressNotUsable";
pub(crate) const LISTENERS_NOT_VALID: &str = "ListenersNotValid";
pub(crate) const LISTENERS_NOT_RESOLVED: &str = "ListenersNotResolved";
pub(crate) const INVALID_CLIENT_CERTIFICATE_REF: &str = "InvalidClientCertificateRef";
pub(crate) const INSECURE_FRONTEND: &str = "InsecureFrontendValidationMode";
pub(crate) const CONFIGURATION_CHANGED: &str = "ConfigurationChanged";
pub(crate) const NOT_ALLOWED: &str = "NotAllowed";
pub(crate) const PARENT_NOT_ACCEPTED: &str = "ParentNotAccepted";
pub(crate) const PARENT_NOT_PROGRAMMED: &str = "ParentNotProgrammed";
pub(crate) const TOO_MANY_LISTENERS: &str = "TooManyListeners";
pub(crate) const PROTOCOL_CONFLICT: &str = "ProtocolConflict";
pub(crate) const HOSTNAME_CONFLICT: &str = "HostnameConflict";
pub(crate) const OVERLAPPING_TLS: &str = "OverlappingTLSConfig";
pub(crate) const OVERLAPPING_HOSTNAMES: &str = "OverlappingHostnames";
pub(crate) const UNSUPPORTED_PROTOCOL: &str = "UnsupportedProtocol";
pub(crate) const UNSUPPORTED_VALUE: &str = "UnsupportedValue";
pub(crate) const INVALID_CERTIFICATE_REF: &str = "InvalidCertificateRef";
pub(crate) const INVALID_CA_CERTIFICATE_REF: &str = "InvalidCACertificateRef";
pub(crate) const INVALID_CA_CERTIFICATE_KIND: &str = "InvalidCACertificateKind";
pub(crate) const NO_VALID_CA_CERTIFICATE: &str = "NoValidCACertificate";
pub(crate) const INVALID_ROUTE_KINDS: &str = "InvalidRouteKinds";
pub(crate) const BACKEND_NOT_FOUND: &str = "BackendNotFound";
pub(crate) const REF_NOT_PERMITTED: &str = "RefNotPermitted";
pub(crate) const INVALID_KIND: &str = "InvalidKind";
pub(crate) const NO_MATCHING_PARENT: &str = "NoMatchingParent";
pub(crate) const NOT_ALLOWED_BY_LISTENERS: &str = "NotAllowedByListeners";
pub(crate) const NO_MATCHING_HOSTNAME: &str = "NoMatchingListenerHostname";
pub(crate) const PARTIALLY_INVALID: &str = "PartiallyInvalid";
pub(crate) const CONFLICTED: &str = "Conflicted";
pub(crate) const TARGET_NOT_FOUND: &str = "TargetNotFound";
pub(crate) const ROUTE_NOT_ACCEPTED: &str = "HTTPRouteNotAccepted";
pub(crate) const INVALID_EXTENSION_REF: &str = "InvalidExtensionRef";

// Ours.
/// The object cannot be read as its kind.
pub(crate) const MALFORMED: &str = "Malformed";
/// A value breaks a rule of its kind.
pub(crate) const INVALID_VALUE: &str = "InvalidValue";
/// A field that its kind does not have.
pub(crate) const UNKNOWN_FIELD: &str = "UnknownField";
/// A field that its kind has and Forebay does not act on.
pub(crate) const UNSUPPORTED_FIELD: &str = "UnsupportedField";
/// An object of a kind that Forebay does not read.
pub(crate) const UNKNOWN_KIND: &str = "UnknownKind";
/// A label of ours with a value that means nothing.
pub(crate) const UNKNOWN_LABEL: &str = "UnknownLabelValue";
/// Two pods of a pool have one address.
pub(crate) const DUPLICATE_ENDPOINT: &str = "DuplicateEndpoint";
/// The annotation of a pool does not hold a picker; the default serves.
pub(crate) const INVALID_PICKER: &str = "InvalidPicker";
/// A label selector that makes no sense, and so selects nothing.
pub(crate) const INVALID_SELECTOR: &str = "InvalidSelector";
/// A Service that a BackendTLSPolicy is for, and whose policy does not hold: it gets no requests,
/// since without the policy they would go in cleartext.
pub(crate) const INVALID_BACKEND_TLS: &str = "InvalidBackendTLS";
/// More parents than the status of an object has room for.
pub(crate) const TOO_MANY_PARENTS: &str = "TooManyParents";
/// Something of the same name comes first, and counts.
pub(crate) const SHADOWED: &str = "Shadowed";
/// A reference to an object that is not there.
pub(crate) const NOT_FOUND: &str = "NotFound";
/// The API server cannot be followed; the last state is served.
pub const SOURCE_UNREACHABLE: &str = "SourceUnreachable";
/// Objects of a kind that may not be read.
pub const KIND_NOT_READ: &str = "KindNotRead";
/// A Gateway cannot be given what it needs to be reached.
pub const NO_INFRASTRUCTURE: &str = "NoInfrastructure";
/// More problems than are kept.
pub(crate) const TOO_MANY_PROBLEMS: &str = "TooManyProblems";
