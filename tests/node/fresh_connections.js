// Calls a node over many fresh connections, each used once: folder of node_modules, address, count, then CA,
// certificate and key for TLS.
const fs = require("node:fs");
const { createRequire } = require("node:module");

const [folder, address, count, ca, cert, key] = process.argv.slice(2);
const grpc = createRequire(folder + "/")("@grpc/grpc-js");
const read = (path) => (path ? fs.readFileSync(path) : null);
const credentials = ca
  ? grpc.credentials.createSsl(read(ca), read(key), read(cert))
  : grpc.credentials.createInsecure();
const bytes = (value) => value;
// GetRequest { context_id: "c" }
const request = Buffer.from([0x0a, 0x01, 0x63]);

async function call(number) {
  const client = new grpc.Client(address, credentials, { "grpc.use_local_subchannel_pool": 1 });
  try {
    await new Promise((resolve, reject) => {
      const deadline = Date.now() + 20_000;
      client.makeUnaryRequest("/converge.context.v1.ContextService/Get", bytes, bytes, request, { deadline }, (error) =>
        error ? reject(new Error(`connection ${number}: ${error.message}`)) : resolve(),
      );
    });
  } finally {
    client.close();
  }
}

(async () => {
  const failed = [];
  for (let number = 0; number < Number(count); number++) {
    await call(number).catch((error) => failed.push(error.message));
  }
  if (failed.length) {
    console.error(`${failed.length} of ${count} calls were not answered:\n${failed.slice(0, 10).join("\n")}`);
    process.exit(1);
  }
})();
