//! Programs that tests use if the machine has them, or can have them: made once, in the user's cache.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A Python with grpcio-tools; made on first use.
///
/// # Errors
/// Says why there is none.
pub fn python() -> Result<PathBuf, String> {
    let venv = cache()?.join("python");
    let python = venv.join("bin/python");
    if has_grpc(&python) {
        return Ok(python);
    }
    fs::create_dir_all(&venv).map_err(|error| format!("{}: {error}", venv.display()))?;
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    run(Command::new(&python).args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--retries=1",
        "--timeout=30",
        "--only-binary=:all:",
        "grpcio-tools",
    ]))?;
    if has_grpc(&python) {
        Ok(python)
    } else {
        Err("grpcio-tools was installed but does not load".to_owned())
    }
}

fn has_grpc(python: &Path) -> bool {
    Command::new(python)
        .args(["-c", "import grpc, grpc_tools"])
        .output()
        .is_ok_and(|run| run.status.success())
}

/// A folder whose `node_modules` has `@grpc/grpc-js`; made on first use.
///
/// # Errors
/// Says why there is none.
pub fn grpc_js() -> Result<PathBuf, String> {
    let folder = cache()?.join("node");
    if !folder.join("node_modules/@grpc/grpc-js/package.json").exists() {
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let install = ["install", "--no-audit", "--no-fund", "--silent", "@grpc/grpc-js"];
        run(Command::new("npm").args(install).current_dir(&folder))?;
    }
    run(Command::new("node").arg("--version"))?;
    Ok(folder)
}

/// Keys and certificates of an authority, of a server at 127.0.0.1 and of a client, made by `openssl`.
#[derive(Debug)]
pub struct Certificates {
    dir: PathBuf,
}

impl Certificates {
    /// Makes them in a directory.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn make(dir: &Path) -> Result<Self, String> {
        let file = |name: &str| dir.join(name).display().to_string();
        let openssl = |args: &[&str]| run(Command::new("openssl").args(args)).map(|_| ());
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout"];
        let (ca_key, ca) = (file("ca.key"), file("ca.pem"));
        let authority = ["-out", &ca, "-x509", "-days", "2", "-subj", "/CN=test authority"];
        openssl(&[&["req"], &key[..], &[&ca_key], &authority].concat())?;
        for (name, extensions) in [
            ("server", "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth\n"),
            ("client", "subjectAltName=DNS:client\nextendedKeyUsage=clientAuth\n"),
        ] {
            let at = |end: &str| file(&format!("{name}.{end}"));
            let (key_file, request, extended) = (at("key"), at("csr"), at("ext"));
            fs::write(&extended, extensions).map_err(|error| error.to_string())?;
            let subject = format!("/CN={name}");
            openssl(&[&["req"], &key[..], &[&key_file, "-out", &request, "-subj", &subject]].concat())?;
            openssl(&[
                "x509",
                "-req",
                "-days",
                "2",
                "-in",
                &request,
                "-CA",
                &file("ca.pem"),
                "-CAkey",
                &file("ca.key"),
                "-CAcreateserial",
                "-extfile",
                &extended,
                "-out",
                &at("pem"),
            ])?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// The path of a file: `ca.pem`, `server.pem`, `server.key`, `client.pem`, `client.key`.
    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

/// Runs a program; an error says how it ended.
///
/// # Errors
/// If it does not start, or fails: with the last line it printed.
pub fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it printed nothing").to_owned();
    Err(format!("{command:?} ended with {}: {last}", output.status))
}

fn cache() -> Result<PathBuf, String> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))
        .ok_or("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(cache.join("converge-ledger"))
}
