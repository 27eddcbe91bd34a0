//! Protobuf messages and gRPC services that Forebay speaks with others: external processing (Envoy's
//! `ext_proc`, which endpoint pickers serve), gRPC health, and what the kubelet asks of drivers of devices.
//!
//! What is below `generated` follows from the files in `proto`; `cargo xtask codegen` writes it and
//! nobody edits it. Meaning is given to the messages elsewhere: in the gateway, which asks pickers.

/// External processing, `envoy.service.ext_proc.v3`: messages, the service's trait and a client.
pub mod ext_proc {
    pub use crate::envoy::config::core::v3::*;
    pub use crate::envoy::extensions::filters::http::ext_proc::v3::*;
    pub use crate::envoy::service::ext_proc::v3::*;
    pub use crate::envoy::r#type::v3::*;
}

/// gRPC health, `grpc.health.v1`.
pub mod health {
    pub use crate::grpc::health::v1::*;
}

/// What the kubelet speaks with plugins on its node: registration, devices, and how these are.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated, and documented in the proto files"
)]
pub mod kubelet {
    /// `pluginregistration`: how the kubelet learns of a plugin.
    pub mod registration {
        include!("generated/pluginregistration.rs");
    }
    /// `DRAPlugin`, version v1.
    pub mod dra_v1 {
        include!("generated/k8s.io.kubelet.pkg.apis.dra.v1.rs");
    }
    /// `DRAPlugin`, version v1beta1.
    pub mod dra_v1beta1 {
        include!("generated/k8s.io.kubelet.pkg.apis.dra.v1beta1.rs");
    }
    /// `DRAResourceHealth`, version v1.
    pub mod health_v1 {
        include!("generated/v1.rs");
    }
    /// `DRAResourceHealth`, version v1alpha1.
    pub mod health_v1alpha1 {
        include!("generated/v1alpha1.rs");
    }
}

pub use prost_types::{ListValue, Struct, Value, value};

/// The path of `ExternalProcessor.Process`, for those who write the request's head themselves.
pub const PROCESS_PATH: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";

// Modules as the packages lie: generated code refers from one to another by these paths.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::redundant_clone,
    clippy::match_wildcard_for_single_variants,
    clippy::unwrap_used,
    reason = "generated, and documented in the proto files"
)]
mod envoy {
    pub mod config {
        pub mod core {
            pub mod v3 {
                include!("generated/envoy.config.core.v3.rs");
            }
        }
    }
    pub mod extensions {
        pub mod filters {
            pub mod http {
                pub mod ext_proc {
                    pub mod v3 {
                        include!("generated/envoy.extensions.filters.http.ext_proc.v3.rs");
                    }
                }
            }
        }
    }
    pub mod service {
        pub mod ext_proc {
            pub mod v3 {
                include!("generated/envoy.service.ext_proc.v3.rs");
            }
        }
    }
    pub mod r#type {
        pub mod v3 {
            include!("generated/envoy.r#type.v3.rs");
        }
    }
}

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated, and documented in the proto files"
)]
mod grpc {
    pub mod health {
        pub mod v1 {
            include!("generated/grpc.health.v1.rs");
        }
    }
}
