use super::*;

#[test]
fn a_service_account_gives_address_authority_and_token() {
    let directory = std::env::temp_dir().join(format!("sluice-service-account-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let signed = rcgen::generate_simple_self_signed(["kubernetes".to_owned()]).unwrap();
    std::fs::write(directory.join("token"), "t\n").unwrap();
    let environment = |host: &'static str| {
        move |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some(host.to_owned()),
            "KUBERNETES_SERVICE_PORT" => Some("443".to_owned()),
            _ => None,
        }
    };
    let reason = in_cluster(&directory, environment("10.96.0.1")).err().unwrap();
    assert!(reason.contains("ca.crt"), "{reason}");
    std::fs::write(directory.join("ca.crt"), signed.cert.pem()).unwrap();
    let chosen = in_cluster(&directory, environment("fd00::1")).unwrap();
    assert_eq!(chosen.server, "https://[fd00::1]:443");
    assert_eq!(chosen.authorization.header().unwrap().unwrap(), "Bearer t");
    assert!(in_cluster(&directory, |_| None).err().unwrap().contains("KUBERNETES_SERVICE_HOST"));
    std::fs::remove_dir_all(directory).unwrap();
}
